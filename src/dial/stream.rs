//! The stream of a dial: TLS or not, without blocking.

use std::io;

use socket2::Socket;

use crate::connection::tls_connection::TlsConnection;
use crate::dial::io::DialIo;
use crate::dial::tls::unread_alert;
use crate::error::{Error, ErrorKind};

/// The socket of a dial, and the TLS engine beside it.
pub(super) struct Stream<'a> {
    pub(super) socket: &'a Socket,
    pub(super) tls: Option<&'a mut TlsConnection>,
}

impl Stream<'_> {
    pub(super) fn send(
        &mut self,
        bytes: &[u8],
        io: &DialIo<'_>,
        context: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let Some(tls) = &mut self.tls else { return io.send(self.socket, bytes, context) };
        tls.enter()
            .write_all(bytes)
            .map_err(|error| Error::caused(ErrorKind::Tls, context(), error))?;
        let cipher = output(tls, context)?;
        io.send(self.socket, &cipher, context)
            .map_err(|error| unread_alert(tls, self.socket, error, context))
    }

    /// Appends what comes; 0 at the end of the connection.
    pub(super) fn receive(
        &mut self,
        into: &mut Vec<u8>,
        io: &DialIo<'_>,
        context: &dyn Fn() -> String,
    ) -> Result<usize, Error> {
        let mut bytes = vec![0; 4096];
        let count = match &mut self.tls {
            None => io.recv(self.socket, &mut bytes, context)?,
            Some(tls) => loop {
                match tls.enter().read(&mut bytes) {
                    Ok(count) => break count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(Error::caused(ErrorKind::Tls, context(), error)),
                }
                io.send(self.socket, &output(tls, context)?, context)?;
                let mut cipher = vec![0; 16 * 1024];
                match io.recv(self.socket, &mut cipher, context)? {
                    0 => break 0,
                    filled => tls.buffers().feed(&mut cipher, filled),
                }
            },
        };
        into.extend_from_slice(&bytes[..count]);
        Ok(count)
    }
}

/// Takes the output of the engine.
fn output(tls: &mut TlsConnection, context: &dyn Fn() -> String) -> Result<Vec<u8>, Error> {
    let mut output = Vec::new();
    let taken = tls.buffers().take_output(&mut output);
    taken.map_err(|error| Error::caused(ErrorKind::Tls, context(), error))?;
    Ok(output)
}
