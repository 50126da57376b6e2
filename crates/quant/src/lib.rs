//! GGUF block formats: layout, size, decode, encode.
