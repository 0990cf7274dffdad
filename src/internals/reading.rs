//! The reader of an open connection, without a client around it.

use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::config::settings::Settings;
use crate::connection::OpenConnection;
use crate::connection::Receiving;
use crate::connection::socket::StreamSocket;
use crate::connection::writer::{FrameWriter, OutgoingLimits};
use crate::event::{Carried, Opened};
use crate::handler::EventSink;
use crate::name::ClientName;
use crate::protocol::deflate::{Deflater, Inflater};
use crate::rate_limit::Limits;
use crate::runtime::read_loop::{ReadEnd, Reader};
use crate::runtime::shared::Shared;
use crate::sender::Sender;
use crate::sync::channel::{Receiver, bounded};
use crate::sync::threads::{ThreadOptions, Threads};
use crate::sync::wakeups::Wakeups;

/// A connection of which all threads are missing: whoever has it reads.
pub(super) struct OpenReader {
    pub(super) reader: Reader,
    pub(super) connection: Arc<OpenConnection>,
    pub(super) shared: Arc<Shared>,
    sender: Sender,
    _wakeups: [Receiver<()>; 2],
}

impl OpenReader {
    /// A connection that has received these bytes with the response of its opening handshake.
    /// Returns the socket of its peer too. `None` if the process has no descriptors left.
    pub(super) fn new(
        received: &[u8],
        settings: &Settings,
        engines: Option<(Inflater, Deflater)>,
    ) -> Option<(OpenReader, Socket)> {
        let pair = Socket::pair(Domain::UNIX, Type::STREAM, None).ok()?;
        Self::on(pair, received, settings, engines)
    }

    /// A connection on which each `recv` brings one of these pieces.
    pub(super) fn with_pieces(pieces: &[&[u8]], settings: &Settings) -> Option<OpenReader> {
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).ok()?;
        theirs.set_nonblocking(true).ok()?;
        for piece in pieces {
            theirs.send(piece).ok()?;
        }
        Self::on((ours, theirs), &[], settings, None).map(|(open, _)| open)
    }

    fn on(
        (ours, theirs): (Socket, Socket),
        received: &[u8],
        settings: &Settings,
        engines: Option<(Inflater, Deflater)>,
    ) -> Option<(OpenReader, Socket)> {
        let threads = Threads::new(ThreadOptions::default());
        let wakeups = Wakeups::new(false, false).ok()?;
        let (shared, reader_wakeup) =
            Shared::new(threads, settings.timeouts(), wakeups, Box::new(|| None));
        let (wakeup, heartbeat_wakeup) = bounded(1);
        let (inflater, deflater) = engines.unzip();
        let connection = Arc::new(OpenConnection::new(
            1,
            "internals:1".to_owned(),
            ClientName::default(),
            StreamSocket::new(ours, Receiving::default()),
            None,
            FrameWriter::new(deflater, OutgoingLimits::default()),
            settings.timeouts(),
            wakeup,
            Arc::clone(&shared.counters),
            Limits::default(),
            Arc::clone(&shared.threads),
        ));
        let opened = Opened {
            epoch: 1,
            took: Duration::ZERO,
            peer: ([127, 0, 0, 1], 1).into(),
            subprotocol: None,
            headers: http::HeaderMap::new(),
            is_compressed: inflater.is_some(),
            carried: Carried::default(),
            client: ClientName::default(),
        };
        let leftover = received.to_vec();
        let reader = Reader::new(Arc::clone(&connection), opened, leftover, settings, inflater);
        let sender = Sender::new(Arc::clone(&shared));
        let _wakeups = [reader_wakeup, heartbeat_wakeup];
        Some((OpenReader { reader, connection, shared, sender, _wakeups }, theirs))
    }

    /// Reads until the connection ends.
    pub(super) fn run(&mut self, sink: &mut impl EventSink) -> ReadEnd {
        self.reader.run(sink, &self.sender, &self.shared.shutdown, &self.shared.wakeups)
    }
}
