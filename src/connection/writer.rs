//! Messages on their way out: compressed, framed, masked and passed to the kernel.

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::connection::close::WriteFault;
use crate::connection::transport::{Attempt, Transport, WriteBuffer, WriteError, WriteErrorKind};
use crate::error::{Error, ErrorKind};
use crate::event::Payload;
use crate::protocol::deflate::Deflater;
use crate::protocol::frame::Frame;
use crate::protocol::mask::{self, MaskingKeys};
use crate::time::Deadline;

/// The part of a large message that is masked and sent at a time, so that sending 16 MiB does not
/// take a second 16 MiB.
const CHUNK: usize = 64 * 1024;

/// The longest header of a client's frame (RFC 6455 section 5.2).
const HEADER_MAX: usize = 14;

/// The capacity that a burst may leave behind in a buffer.
const KEEP: usize = 2 * CHUNK;

/// The writing half above the transport: whoever holds its lock decides what is sent next. Senders
/// and the heartbeat thread take it, always before the TLS engine's and always with a deadline; the
/// reader never does.
pub(crate) struct FrameWriter {
    write_buffer: WriteBuffer,
    keys: MaskingKeys,
    /// Frames under construction.
    plain: Vec<u8>,
    /// Compressed payloads under construction.
    compressed: Vec<u8>,
    deflater: Option<Deflater>,
    limits: OutgoingLimits,
    /// A fragmented message has begun and has not ended: control frames may stand between its
    /// fragments, data frames may not (RFC 6455 section 5.4).
    is_fragmenting: bool,
    /// The first fragment of it is out.
    is_mid_message: bool,
}

/// The limits of what is sent, in payload bytes before compression.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutgoingLimits {
    /// A longer message is refused.
    pub(crate) max_message_size: usize,
    /// A longer message goes in several frames.
    pub(crate) max_frame_size: usize,
}

impl Default for OutgoingLimits {
    fn default() -> Self {
        OutgoingLimits { max_message_size: usize::MAX, max_frame_size: usize::MAX }
    }
}

/// A message, or a fragment of one, that did not go out whole.
#[derive(Debug)]
pub(crate) struct WriteFailure {
    /// The kernel has taken a part of it, or may have.
    pub(crate) is_partial: bool,
    /// Nothing further can be sent on this connection.
    is_fatal: bool,
    cause: FailureCause,
}

#[derive(Debug)]
enum FailureCause {
    /// Refused by [`OutgoingLimits`].
    TooBig(Error),
    Write(WriteErrorKind),
}

/// Several messages of which not all went out.
#[derive(Debug)]
pub(crate) struct BatchFailure {
    /// The number of messages, from the first, that went whole.
    pub(crate) whole: usize,
    /// The bytes of their frames.
    pub(crate) bytes: usize,
    /// The failure of the next message.
    pub(crate) failure: WriteFailure,
}

impl WriteFailure {
    fn new(error: WriteError, is_partial: bool) -> Self {
        let is_fatal = is_partial || error.is_fatal;
        WriteFailure { is_partial, is_fatal, cause: FailureCause::Write(error.kind) }
    }

    fn too_big(error: Error) -> Self {
        let cause = FailureCause::TooBig(error);
        WriteFailure { is_partial: false, is_fatal: false, cause }
    }

    /// Returns what it says about the connection; `None` when the connection goes on.
    pub(crate) fn fault(&self) -> Option<WriteFault> {
        self.is_fatal.then(|| match &self.cause {
            FailureCause::Write(WriteErrorKind::System(error)) => WriteFault::of(error),
            FailureCause::Write(WriteErrorKind::Deadline) | FailureCause::TooBig(_) => {
                WriteFault::Broken
            }
        })
    }

    pub(crate) fn into_error(self, deadline: Deadline) -> Error {
        match self.cause {
            FailureCause::TooBig(error) => error,
            FailureCause::Write(WriteErrorKind::Deadline) => {
                deadline.error("waiting for the peer to read")
            }
            FailureCause::Write(WriteErrorKind::System(error)) => {
                Error::caused(ErrorKind::Io, "writing to the connection", error)
            }
        }
    }
}

impl FrameWriter {
    pub(crate) fn new(deflater: Option<Deflater>, limits: OutgoingLimits) -> Self {
        FrameWriter {
            write_buffer: WriteBuffer::default(),
            keys: MaskingKeys::new(),
            plain: Vec::new(),
            compressed: Vec::new(),
            deflater,
            limits,
            is_fragmenting: false,
            is_mid_message: false,
        }
    }

    /// # Errors
    /// `TooBig`, if a message of `len` bytes may not be sent.
    #[inline]
    pub(crate) fn check_len(&self, len: usize) -> Result<(), Error> {
        if len > self.limits.max_message_size { Err(self.too_big(len)) } else { Ok(()) }
    }

    #[cold]
    fn too_big(&self, len: usize) -> Error {
        let max = self.limits.max_message_size;
        let context =
            format!("a message of {len} bytes is longer than max_outgoing_message_size, {max}");
        Error::new(ErrorKind::TooBig, context)
    }

    /// A fragmented message is under way.
    pub(crate) fn is_fragmenting(&self) -> bool {
        self.is_fragmenting
    }

    /// The last message that was begun is out in part: no pong may confirm it.
    pub(crate) fn is_mid_message(&self) -> bool {
        self.is_mid_message
    }

    pub(crate) fn begin_fragments(&mut self) {
        self.is_fragmenting = true;
    }

    /// Sends a fragment. A first one has the opcode of its message, the others continue it.
    pub(crate) fn send_fragment(
        &mut self,
        transport: &Transport,
        opcode: OpCode,
        payload: &[u8],
        is_final: bool,
        deadline: Deadline,
    ) -> Result<usize, WriteFailure> {
        let mut taken = 0;
        let fragment = Frame { opcode, is_final, is_compressed: false, payload };
        let result = self.send_frames(transport, fragment, deadline, &mut taken);
        self.is_mid_message |= result.is_ok();
        match result {
            Ok(()) => Ok(taken),
            Err(error) => {
                // The fragments before it are a part of the message too.
                let is_partial = self.is_mid_message || error.is_partial || taken + error.taken > 0;
                Err(WriteFailure::new(error, is_partial))
            }
        }
    }

    pub(crate) fn end_fragments(&mut self) {
        (self.is_fragmenting, self.is_mid_message) = (false, false);
    }

    pub(crate) fn write_buffer(&mut self) -> &mut WriteBuffer {
        &mut self.write_buffer
    }

    pub(crate) fn nonce(&mut self) -> [u8; 8] {
        let (first, second) = (self.keys.next(), self.keys.next());
        let mut nonce = [0; 8];
        nonce[..4].copy_from_slice(&first);
        nonce[4..].copy_from_slice(&second);
        nonce
    }

    /// Sends one message. Returns the number of bytes of its frames.
    pub(crate) fn send(
        &mut self,
        transport: &Transport,
        payload: Payload<'_>,
        deadline: Deadline,
    ) -> Result<usize, WriteFailure> {
        let (opcode, bytes) = parts(payload);
        self.check_len(bytes.len()).map_err(WriteFailure::too_big)?;
        let (mut taken, mut has_compressed) = (0, false);
        let result =
            self.send_message(transport, opcode, bytes, deadline, &mut taken, &mut has_compressed);
        match result {
            Ok(()) => Ok(taken),
            Err(error) => {
                let is_partial = error.is_partial || taken + error.taken > 0;
                let mut failure = WriteFailure::new(error, is_partial);
                // A compressor with context takeover has seen a message that the peer has not: the
                // next would not inflate.
                failure.is_fatal |= has_compressed && self.takes_over();
                Err(failure)
            }
        }
    }

    /// Returns the number of messages, from the first, that go out by one system call.
    pub(crate) fn count_together(&self, payloads: &[Payload<'_>]) -> usize {
        let mut len = 0;
        let count = payloads.iter().take_while(|payload| {
            let (_, bytes) = parts(**payload);
            len += bytes.len() + HEADER_MAX;
            // A large message goes alone, in chunks or frames of its own, and so does one that is
            // to be compressed or refused.
            len <= CHUNK + HEADER_MAX && !self.goes_alone(bytes)
        });
        count.count().max(1)
    }

    /// Sends messages together, as many as [`count_together`](Self::count_together) says. Returns
    /// the number of bytes of their frames.
    pub(crate) fn send_together(
        &mut self,
        transport: &Transport,
        payloads: &[Payload<'_>],
        deadline: Deadline,
    ) -> Result<usize, BatchFailure> {
        if let &[payload] = payloads {
            let failed = |failure| BatchFailure { whole: 0, bytes: 0, failure };
            return self.send(transport, payload, deadline).map_err(failed);
        }
        self.plain.clear();
        let mut ends = Vec::with_capacity(payloads.len());
        for &payload in payloads {
            let (opcode, bytes) = parts(payload);
            let key = self.keys.next();
            Frame::whole(opcode, bytes).put(&mut self.plain, key);
            ends.push(self.plain.len());
        }
        let result = transport.transmit(&mut self.write_buffer, &self.plain, deadline);
        let len = self.plain.len();
        self.plain.shrink_to(KEEP);
        result.map(|()| len).map_err(|error| {
            let whole = ends.iter().take_while(|&&end| end <= error.taken).count();
            let bytes = if whole == 0 { 0 } else { ends[whole - 1] };
            let is_partial = error.is_partial || error.taken > bytes;
            BatchFailure { whole, bytes, failure: WriteFailure::new(error, is_partial) }
        })
    }

    fn goes_alone(&self, payload: &[u8]) -> bool {
        let OutgoingLimits { max_message_size, max_frame_size } = self.limits;
        payload.len() > max_frame_size.min(max_message_size) || self.compresses(payload)
    }

    fn compresses(&self, payload: &[u8]) -> bool {
        self.deflater.as_ref().is_some_and(|deflater| deflater.compresses(payload))
    }

    /// Sends a control frame without waiting. The caller knows that its payload fits (RFC 6455
    /// section 5.5).
    pub(crate) fn attempt_control(
        &mut self,
        transport: &Transport,
        opcode: Control,
        payload: &[u8],
    ) -> std::io::Result<Attempt> {
        self.plain.clear();
        let key = self.keys.next();
        Frame::whole(OpCode::Control(opcode), payload).put(&mut self.plain, key);
        transport.attempt(&mut self.write_buffer, &self.plain)
    }

    /// Sends a message without waiting, uncompressed. Also returns the number of bytes of its
    /// frames.
    pub(crate) fn attempt_message(
        &mut self,
        transport: &Transport,
        payload: Payload<'_>,
    ) -> std::io::Result<(Attempt, usize)> {
        self.plain.clear();
        let (opcode, bytes) = parts(payload);
        let message = Frame::whole(opcode, bytes);
        for frame in split(message, self.limits.max_frame_size) {
            frame.put(&mut self.plain, self.keys.next());
        }
        let attempt = transport.attempt(&mut self.write_buffer, &self.plain)?;
        Ok((attempt, self.plain.len()))
    }

    /// Returns `true` if a compressed message may refer to those before it.
    fn takes_over(&self) -> bool {
        self.deflater.as_ref().is_some_and(Deflater::takes_over)
    }

    /// Sends a message whole: compressed if it is long enough, split into frames if they are
    /// limited. `taken` counts the bytes of chunks that went.
    fn send_message(
        &mut self,
        transport: &Transport,
        opcode: OpCode,
        payload: &[u8],
        deadline: Deadline,
        taken: &mut usize,
        has_compressed: &mut bool,
    ) -> Result<(), WriteError> {
        if self.compresses(payload) && self.takes_over() {
            // What has been compressed cannot be taken back, so look for room first.
            transport.await_room_untouched(deadline)?;
        }
        let mut compressed = std::mem::take(&mut self.compressed);
        compressed.clear();
        let is_compressed = match &mut self.deflater {
            Some(deflater) => deflater.compress(payload, &mut compressed),
            None => false,
        };
        *has_compressed = is_compressed;
        let payload = if is_compressed { &compressed[..] } else { payload };
        let message = Frame { opcode, is_final: true, is_compressed, payload };
        let result = self.send_frames(transport, message, deadline, taken);
        compressed.shrink_to(KEEP);
        self.compressed = compressed;
        result
    }

    /// Sends a message or a fragment of one, split into frames if they are limited.
    fn send_frames(
        &mut self,
        transport: &Transport,
        message: Frame<'_>,
        deadline: Deadline,
        taken: &mut usize,
    ) -> Result<(), WriteError> {
        for frame in split(message, self.limits.max_frame_size) {
            self.send_frame(transport, frame, deadline, taken)?;
        }
        Ok(())
    }

    fn send_frame(
        &mut self,
        transport: &Transport,
        frame: Frame<'_>,
        deadline: Deadline,
        taken: &mut usize,
    ) -> Result<(), WriteError> {
        self.plain.clear();
        let key = self.keys.next();
        frame.put_header(&mut self.plain, key);
        // CHUNK is a multiple of four, so every chunk starts at the first byte of the key.
        let (first, rest) = frame.payload.split_at(frame.payload.len().min(CHUNK));
        mask::put_masked(&mut self.plain, first, key);
        transport.transmit(&mut self.write_buffer, &self.plain, deadline)?;
        *taken += self.plain.len();
        for chunk in rest.chunks(CHUNK) {
            self.plain.clear();
            mask::put_masked(&mut self.plain, chunk, key);
            transport.transmit(&mut self.write_buffer, &self.plain, deadline)?;
            *taken += self.plain.len();
        }
        Ok(())
    }
}

/// Splits a message, or a fragment of one, into frames of at most `max` payload bytes. The opcode
/// and RSV1 stand on the first frame, FIN on the last (RFC 6455 section 5.4, RFC 7692 section 6.1).
fn split(message: Frame<'_>, max: usize) -> impl Iterator<Item = Frame<'_>> {
    let count = message.payload.len().div_ceil(max).max(1);
    (0..count).map(move |index| {
        let end = message.payload.len().min((index + 1).saturating_mul(max));
        let is_first = index == 0;
        Frame {
            opcode: if is_first { message.opcode } else { OpCode::Data(Data::Continue) },
            is_final: message.is_final && index + 1 == count,
            is_compressed: message.is_compressed && is_first,
            payload: &message.payload[index * max..end],
        }
    })
}

fn parts<'a>(payload: Payload<'a>) -> (OpCode, &'a [u8]) {
    match payload {
        Payload::Text(text) => (OpCode::Data(Data::Text), text.as_bytes()),
        Payload::Binary(bytes) => (OpCode::Data(Data::Binary), bytes),
    }
}

#[cfg(all(test, unix, not(shuttle)))]
mod tests {
    use std::io::Read;
    use std::time::{Duration, Instant};

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::connection::Receiving;
    use crate::connection::socket::StreamSocket;
    use crate::error::Timeout;
    use crate::protocol::deflate::Deflate;

    fn deflater() -> Deflater {
        let agreed = Deflate::new().accept(&["permessage-deflate".to_owned()]);
        agreed.ok().flatten().expect("the plainest answer is acceptable").engines().1
    }

    #[test]
    fn short_messages_of_a_batch_go_by_one_system_call_compressed_connection_or_not() {
        // Of datagrams each is what one system call sent.
        let (ours, mut theirs) = Socket::pair(Domain::UNIX, Type::DGRAM, None).expect("a pair");
        let transport = Transport::new(StreamSocket::new(ours, Receiving::default()), None);
        for deflater in [None, Some(deflater())] {
            let mut writer = FrameWriter::new(deflater, OutgoingLimits::default());
            let deadline = Deadline::new(Timeout::Send, Duration::from_secs(10), Instant::now());
            let batch = [Payload::Text("short"); 100];
            assert_eq!(writer.count_together(&batch), batch.len());
            let bytes = writer.send_together(&transport, &batch, deadline).expect("there is room");
            assert_eq!(theirs.read(&mut vec![0; 64 * 1024]).expect("it came"), bytes);
        }
    }

    #[test]
    fn a_message_that_finds_no_room_harms_no_compressed_connection() {
        let (ours, _theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None).expect("a pair");
        while ours
            .send_with_flags(&[0; 4096], rustix::net::SendFlags::DONTWAIT.bits() as i32)
            .is_ok()
        {}
        let transport = Transport::new(StreamSocket::new(ours, Receiving::default()), None);
        let agreed = Deflate::new().threshold(0).accept(&["permessage-deflate".to_owned()]);
        let (_, deflater) =
            agreed.ok().flatten().expect("the plainest answer is acceptable").engines();
        let mut writer = FrameWriter::new(Some(deflater), OutgoingLimits::default());
        for text in ["short", "and another"] {
            let deadline = Deadline::new(Timeout::Send, Duration::from_millis(10), Instant::now());
            let failed = writer
                .send(&transport, Payload::Text(text), deadline)
                .expect_err("there is no room");
            assert!(!failed.is_partial && failed.fault().is_none(), "{failed:?}");
        }
    }

    #[test]
    fn nobody_is_stuck_once_there_is_room() {
        let (ours, mut theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None).expect("a pair");
        while ours
            .send_with_flags(&[0; 4096], rustix::net::SendFlags::DONTWAIT.bits() as i32)
            .is_ok()
        {}
        let transport = Transport::new(StreamSocket::new(ours, Receiving::default()), None);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let deadline =
                    Deadline::new(Timeout::Send, Duration::from_secs(10), Instant::now());
                transport.await_room_untouched(deadline)
            });
            while transport.stuck_since().is_none() {
                std::thread::yield_now();
            }
            theirs.set_nonblocking(true).expect("it is a socket");
            while theirs.read(&mut [0; 65536]).is_ok() {}
            assert!(waits.join().expect("it does not panic").is_ok());
        });
        // A sender that asked for room now compresses, which may take its time under the writer.
        assert_eq!(transport.stuck_since(), None);
    }
}
