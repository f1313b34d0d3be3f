//! Dialects, translation and the streaming core.
