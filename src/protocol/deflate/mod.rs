//! permessage-deflate (RFC 7692).

mod codec;
mod config;
mod negotiate;

pub(crate) use codec::{Deflater, InflateError, Inflater};
pub use config::Deflate;
