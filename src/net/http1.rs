//! The HTTP/1 codec, sans-I/O: bytes in, heads and body bytes out. Both sides of the gateway use it.
