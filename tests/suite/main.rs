//! Tests of what users of the crate rely on, against scripted servers.

mod addresses;
mod batches;
mod callbacks;
mod closing;
mod decoding;
mod delivery;
mod dialing;
mod exchanges;
mod exchanges_deribit;
mod exchanges_htx;
mod exchanges_kraken;
mod exchanges_kraken_rules;
mod heartbeat;
mod keys;
mod limits;
mod naming;
mod openssl;
mod reconnecting;
mod responding;
mod sending;
mod session;
mod session_edges;
mod stopping;
mod support;
mod trust;
mod waking;
