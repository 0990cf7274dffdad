//! A WebSocket client for programs that block.
#![deny(unsafe_code)]
