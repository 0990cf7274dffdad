//! A TLS engine with records in memory, in the place of OpenSSL.

use std::io::{self, ErrorKind, Read, Write};

use crate::connection::tls_connection::{TlsBuffers, TlsStream};

/// The kinds of record. A record is a kind, a length and that many bytes.
pub(super) const DATA: u8 = b'd';
/// The peer changes its keys and asks for the same, which the engine answers by itself.
pub(super) const KEY_UPDATE: u8 = b'k';
pub(super) const KEY_UPDATED: u8 = b'K';
/// From here until [`RENEGOTIATED`] the engine takes no plaintext.
pub(super) const RENEGOTIATE: u8 = b'r';
pub(super) const RENEGOTIATED: u8 = b'R';
pub(super) const CLOSE_NOTIFY: u8 = b'c';

/// The number of bytes that a record holds.
const RECORD_MAX: usize = 24;

pub(super) fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut record = vec![kind, payload.len() as u8];
    // Not plaintext, so that bytes that bypass the engine are noticed.
    record.extend(payload.iter().map(|byte| byte ^ 0x5a));
    record
}

/// Removes a complete record from the front and returns its kind and payload.
pub(super) fn take_record(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let &[kind, len, ..] = bytes.as_slice() else { return None };
    let end = 2 + usize::from(len);
    if bytes.len() < end {
        return None;
    }
    let record: Vec<u8> = bytes.drain(..end).collect();
    Some((kind, record[2..].iter().map(|byte| byte ^ 0x5a).collect()))
}

/// In the place of OpenSSL or rustls.
pub(crate) struct Engine {
    buffers: TlsBuffers,
    /// The ciphertext of an incomplete record.
    cipher: Vec<u8>,
    plain: Vec<u8>,
    is_renegotiating: bool,
    is_closed: bool,
}

impl Engine {
    pub(crate) fn new() -> Self {
        let (buffers, cipher, plain) = Default::default();
        Engine { buffers, cipher, plain, is_renegotiating: false, is_closed: false }
    }

    fn process_records(&mut self) -> io::Result<()> {
        let mut bytes = [0; 64];
        loop {
            match self.buffers.read(&mut bytes) {
                Ok(count) => self.cipher.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        while let Some((kind, payload)) = take_record(&mut self.cipher) {
            match kind {
                DATA => self.plain.extend(payload),
                KEY_UPDATE => self.buffers.write_all(&record(KEY_UPDATED, &[]))?,
                RENEGOTIATE => {
                    self.is_renegotiating = true;
                    self.buffers.write_all(&record(RENEGOTIATE, &[]))?;
                }
                RENEGOTIATED => self.is_renegotiating = false,
                CLOSE_NOTIFY => self.is_closed = true,
                _ => return Err(io::Error::other("a record of an unknown kind")),
            }
        }
        Ok(())
    }
}

impl TlsStream for Engine {
    fn buffers(&mut self) -> &mut TlsBuffers {
        &mut self.buffers
    }

    fn shutdown(&mut self) -> io::Result<()> {
        self.buffers.write_all(&record(CLOSE_NOTIFY, &[]))
    }

    fn peer_certificate(&self) -> Option<Vec<u8>> {
        None
    }
}

impl Read for Engine {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.process_records()?;
        if self.plain.is_empty() {
            return if self.is_closed { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let count = self.plain.len().min(into.len());
        into[..count].copy_from_slice(&self.plain[..count]);
        self.plain.drain(..count);
        Ok(count)
    }
}

impl Write for Engine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_renegotiating {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = bytes.len().min(RECORD_MAX);
        self.buffers.write_all(&record(DATA, &bytes[..count]))?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
