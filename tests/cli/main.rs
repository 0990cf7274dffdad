//! Tests of the program `tautline` as a script sees it: its output, its exit status, and how
//! signals end it. Unix only: elsewhere it does not watch for signals.
#![cfg(unix)]

mod help;
mod measure;
mod record;
mod replay;
mod support;
mod tail;
mod terminal;
mod watch;
