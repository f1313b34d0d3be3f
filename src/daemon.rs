//! `tidegate run`: start order, phases, signals, drain, stop.
