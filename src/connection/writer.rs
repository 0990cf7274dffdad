//! Messages on their way out: framed, masked, numbered, handed to the kernel, and their fate told.

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::connection::transport::{Attempt, Transport, WriteBuffer, WriteError, WriteErrorKind};
use crate::error::{BatchError, Error, ErrorKind, SendError};
use crate::event::Payload;
use crate::protocol::deflate::Deflater;
use crate::protocol::frame::Frame;
use crate::protocol::mask::{self, MaskingKeys};
use crate::time::Deadline;

/// How much of a large message is masked and sent at a time, so that sending 16 MiB does not take a
/// second 16 MiB.
const CHUNK: usize = 64 * 1024;

/// What a burst may leave behind in a buffer.
const KEEP: usize = 2 * CHUNK;

/// The writing half above the socket: whoever holds its lock decides what is next on the wire. The
/// heart and senders take it, always before the TLS engine's and always with a deadline; the reader
/// never does.
pub(crate) struct FrameWriter {
    write_buffer: WriteBuffer,
    keys: MaskingKeys,
    /// Frames under construction.
    plain: Vec<u8>,
    /// Compressed payloads under construction.
    compressed: Vec<u8>,
    deflater: Option<Deflater>,
    max_outgoing_frame_size: usize,
    /// The number of the last message that went out, or was begun.
    sequence: u64,
    /// A fragmented message has begun and has not ended: control frames may pass, data may not (RFC
    /// 6455 section 5.4).
    is_fragmenting: bool,
    /// The first fragment of it is out, and its number is given.
    is_in_the_middle: bool,
    closed: Option<ClosedBy>,
}

/// Why nothing may follow what is out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ClosedBy {
    /// RFC 6455 section 5.5.1: no data follows a close frame.
    CloseFrame,
    /// It broke off in the middle, where the peer would take whatever came next for the rest. The
    /// connection is aborted for it a moment later, and nobody may write in that moment.
    BreakingOff,
}

/// What a sender is told when all went well.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) sequence: u64,
    pub(crate) bytes: usize,
}

/// A send that failed, and whether the connection has to be aborted for it.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: SendError,
    pub(crate) aborts: bool,
}

/// A batch that ended early.
#[derive(Debug)]
pub(crate) struct FailedBatch {
    pub(crate) error: BatchError,
    pub(crate) aborts: bool,
    /// Bytes of the frames of those messages that went whole.
    pub(crate) bytes: usize,
}

impl Failed {
    /// A part of the message is out, and the rest will not follow.
    pub(crate) fn in_the_middle(self) -> Self {
        Failed { aborts: true, ..self.unknown() }
    }

    fn unknown(self) -> Self {
        let reason = match self.error {
            SendError::NotSent(reason) | SendError::Unknown(reason) => reason,
        };
        Failed { error: SendError::Unknown(reason), aborts: self.aborts }
    }

    pub(crate) fn harmless(error: Error) -> Self {
        Failed { error: SendError::NotSent(error), aborts: false }
    }
}

impl FrameWriter {
    pub(crate) fn new(deflater: Option<Deflater>, max_outgoing_frame_size: Option<usize>) -> Self {
        FrameWriter {
            write_buffer: WriteBuffer::default(),
            keys: MaskingKeys::new(),
            plain: Vec::new(),
            compressed: Vec::new(),
            deflater,
            max_outgoing_frame_size: max_outgoing_frame_size.unwrap_or(usize::MAX),
            sequence: 0,
            is_fragmenting: false,
            is_in_the_middle: false,
            closed: None,
        }
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The number of the last message that is out whole: what a pong may confirm.
    pub(crate) fn whole_sequence(&self) -> u64 {
        self.sequence - u64::from(self.is_in_the_middle)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    pub(crate) fn is_fragmenting(&self) -> bool {
        self.is_fragmenting
    }

    /// Begins a fragmented message, which gets its number now: whatever becomes of it, the peer may
    /// see a part of it.
    pub(crate) fn begin_fragments(&mut self) -> Result<(), Failed> {
        self.refuse_if_closed()?;
        self.is_fragmenting = true;
        Ok(())
    }

    /// Sends a fragment. A first one has the opcode of its message, the others continue it.
    pub(crate) fn send_fragment(
        &mut self,
        transport: &Transport,
        opcode: OpCode,
        payload: &[u8],
        is_final: bool,
        deadline: Deadline,
    ) -> Result<usize, Failed> {
        let is_first = opcode != OpCode::Data(Data::Continue);
        if let Err(refused) = self.refuse_if_closed() {
            return Err(match self.closed {
                _ if is_first => refused,
                // The closing handshake is under way, and aborting would spoil it.
                Some(ClosedBy::CloseFrame) => refused.unknown(),
                _ => refused.in_the_middle(),
            });
        }
        let mut taken = 0;
        let fragment = Frame { opcode, is_final, is_compressed: false, payload };
        let result = self.send_frames(transport, fragment, deadline, &mut taken);
        let cut = match result {
            Ok(()) => {
                self.sequence += u64::from(is_first);
                self.is_in_the_middle = true;
                return Ok(taken);
            }
            Err(cut) => cut,
        };
        let is_touched = cut.is_partial || taken + cut.taken > 0;
        if is_first && is_touched {
            self.sequence += 1;
        }
        let aborts = is_touched || cut.is_fatal;
        self.close_if(aborts);
        let failed = Failed { error: SendError::NotSent(reason(cut.why, deadline)), aborts };
        Err(if is_first && !is_touched { failed } else { failed.in_the_middle() })
    }

    /// The fragmented message is over. Where it broke off nothing may follow.
    pub(crate) fn end_fragments(&mut self, broke_off: bool) {
        (self.is_fragmenting, self.is_in_the_middle) = (false, false);
        self.close_if(broke_off);
    }

    fn close_if(&mut self, broke_off: bool) {
        if broke_off {
            self.closed.get_or_insert(ClosedBy::BreakingOff);
        }
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

    /// Sends one message.
    pub(crate) fn send(
        &mut self,
        transport: &Transport,
        payload: Payload<'_>,
        deadline: Deadline,
    ) -> Result<Sent, Failed> {
        self.refuse_if_closed()?;
        let (opcode, bytes) = parts(payload);
        let (mut taken, mut has_compressed) = (0, false);
        let result =
            self.send_message(transport, opcode, bytes, deadline, &mut taken, &mut has_compressed);
        let numbered = self.sequence + 1;
        match result {
            Ok(()) => {
                self.sequence = numbered;
                Ok(Sent { sequence: numbered, bytes: taken })
            }
            Err(cut) => {
                let is_touched = cut.is_partial || taken + cut.taken > 0;
                if is_touched {
                    // The peer may have it: it has a number, and `Disconnect::sent` counts it.
                    self.sequence = numbered;
                }
                // A compressor that remembers has seen a message that the peer has not: the next
                // would not inflate.
                let aborts = is_touched || cut.is_fatal || has_compressed && self.remembers();
                self.close_if(aborts);
                let why = reason(cut.why, deadline);
                let error =
                    if is_touched { SendError::Unknown(why) } else { SendError::NotSent(why) };
                Err(Failed { error, aborts })
            }
        }
    }

    /// Sends several messages, as many as fit in a chunk by one system call. `begin` is told of
    /// them, by the sequence before them and their number, and may be against it.
    pub(crate) fn send_batch(
        &mut self,
        transport: &Transport,
        payloads: &[Payload<'_>],
        deadline: Deadline,
        begin: &dyn Fn(u64, u64) -> Result<(), Error>,
    ) -> Result<Sent, FailedBatch> {
        let mut sent = 0;
        let mut bytes = 0;
        let fail = |sent: usize, failed: Failed, bytes: usize| FailedBatch {
            error: BatchError { sent, next: failed.error },
            aborts: failed.aborts,
            bytes,
        };
        self.refuse_if_closed().map_err(|failed| fail(0, failed, 0))?;
        while sent < payloads.len() {
            let (opcode, first) = parts(payloads[sent]);
            // A large message goes by itself, in chunks of its own, and so does one that is to be
            // compressed.
            if self.goes_alone(first) {
                begin(self.sequence, 1)
                    .map_err(|error| fail(sent, Failed::harmless(error), bytes))?;
                let one = self
                    .send(transport, payloads[sent], deadline)
                    .map_err(|failed| fail(sent, failed, bytes))?;
                bytes += one.bytes;
                sent += 1;
                continue;
            }
            self.plain.clear();
            let mut ends = Vec::new();
            let mut next = (opcode, first);
            loop {
                let key = self.keys.next();
                Frame::whole(next.0, next.1).put(&mut self.plain, key);
                ends.push(self.plain.len());
                let Some(&payload) = payloads.get(sent + ends.len()) else { break };
                next = parts(payload);
                if self.plain.len() + next.1.len() > CHUNK || self.goes_alone(next.1) {
                    break;
                }
            }
            begin(self.sequence, ends.len() as u64)
                .map_err(|error| fail(sent, Failed::harmless(error), bytes))?;
            if let Err(cut) = transport.transmit(&mut self.write_buffer, &self.plain, deadline) {
                let whole = ends.iter().take_while(|&&end| end <= cut.taken).count();
                let begun = if whole == 0 { 0 } else { ends[whole - 1] };
                let is_touched = cut.is_partial || cut.taken > begun;
                self.sequence += (whole + usize::from(is_touched)) as u64;
                let why = reason(cut.why, deadline);
                let next =
                    if is_touched { SendError::Unknown(why) } else { SendError::NotSent(why) };
                let aborts = is_touched || cut.is_fatal;
                self.close_if(aborts);
                return Err(FailedBatch {
                    error: BatchError { sent: sent + whole, next },
                    aborts,
                    bytes: bytes + begun,
                });
            }
            sent += ends.len();
            bytes += self.plain.len();
            self.sequence += ends.len() as u64;
        }
        self.plain.shrink_to(KEEP);
        Ok(Sent { sequence: self.sequence, bytes })
    }

    fn goes_alone(&self, payload: &[u8]) -> bool {
        payload.len() > CHUNK
            || payload.len() > self.max_outgoing_frame_size
            || self.compresses(payload)
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
        if self.is_closed() {
            return Ok(Attempt::Sent);
        }
        self.plain.clear();
        let key = self.keys.next();
        Frame::whole(OpCode::Control(opcode), payload).put(&mut self.plain, key);
        let attempt = transport.attempt(&mut self.write_buffer, &self.plain)?;
        if opcode == Control::Close && attempt != Attempt::Later {
            self.closed = Some(ClosedBy::CloseFrame);
        }
        Ok(attempt)
    }

    /// Sends a text message of the library's own (an application ping) without waiting; and how
    /// many bytes its frames have.
    pub(crate) fn attempt_text(
        &mut self,
        transport: &Transport,
        text: &str,
    ) -> std::io::Result<(Attempt, usize)> {
        if self.is_closed() {
            return Ok((Attempt::Sent, 0));
        }
        self.plain.clear();
        let message = Frame::whole(OpCode::Data(Data::Text), text.as_bytes());
        for frame in split(message, self.max_outgoing_frame_size) {
            frame.put(&mut self.plain, self.keys.next());
        }
        let attempt = transport.attempt(&mut self.write_buffer, &self.plain)?;
        if attempt != Attempt::Later {
            self.sequence += 1;
        }
        Ok((attempt, self.plain.len()))
    }

    fn refuse_if_closed(&self) -> Result<(), Failed> {
        if self.is_closed() {
            return Err(Failed::harmless(Error::new(
                ErrorKind::Closed,
                "the connection is closing",
            )));
        }
        Ok(())
    }

    /// Whether what is compressed next refers to what was compressed before.
    fn remembers(&self) -> bool {
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
        if self.compresses(payload) && self.remembers() {
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
        for frame in split(message, self.max_outgoing_frame_size) {
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

fn reason(why: WriteErrorKind, deadline: Deadline) -> Error {
    match why {
        WriteErrorKind::Deadline => deadline.error("waiting for the peer to read"),
        WriteErrorKind::System(error) => {
            Error::caused(ErrorKind::Io, "writing to the connection", error)
        }
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
    use crate::protocol::deflate::Deflate;

    #[test]
    fn nothing_follows_a_message_that_broke_off() {
        let (ours, mut theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None).expect("a pair");
        let transport = Transport::new(StreamSocket::new(ours, Receiving::default()), None);
        let mut writer = FrameWriter::new(None, None);
        let deadline =
            |millis| Deadline::new("send_timeout", Duration::from_millis(millis), Instant::now());
        // More than the kernel takes while nobody reads.
        let long = vec![0; 8 * 1024 * 1024];
        let failed = writer
            .send(&transport, Payload::Binary(&long), deadline(10))
            .expect_err("nobody reads");
        assert!(failed.aborts && matches!(failed.error, SendError::Unknown(_)));

        // Somebody reads now, and would take a ping, a close frame or the next message for the rest
        // of the first.
        let mut taken = vec![0; 16 * 1024 * 1024];
        let mut drained = 0;
        theirs.set_nonblocking(true).expect("it is a socket");
        while let Ok(count) = theirs.read(&mut taken[drained..]) {
            drained += count;
        }
        assert!(drained > 0 && drained < long.len());
        assert!(writer.attempt_control(&transport, Control::Ping, b"ping").is_ok());
        assert!(writer.attempt_text(&transport, "ping").is_ok());
        let next = writer
            .send(&transport, Payload::Text("next"), deadline(10))
            .expect_err("nothing may follow");
        assert!(matches!(next.error, SendError::NotSent(_)));
        let batch =
            writer.send_batch(&transport, &[Payload::Text("next")], deadline(10), &|_, _| Ok(()));
        let batch = batch.expect_err("nothing may follow");
        assert!(matches!(batch.error, BatchError { sent: 0, next: SendError::NotSent(_) }));
        let nothing = theirs.read(&mut taken).expect_err("nothing came");
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    }

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
            let mut writer = FrameWriter::new(deflater, None);
            let deadline = Deadline::new("send_timeout", Duration::from_secs(10), Instant::now());
            let batch = [Payload::Text("short"); 100];
            let sent = writer
                .send_batch(&transport, &batch, deadline, &|_, _| Ok(()))
                .expect("there is room");
            assert_eq!(theirs.read(&mut vec![0; 64 * 1024]).expect("it came"), sent.bytes);
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
        let mut writer = FrameWriter::new(Some(deflater), None);
        for text in ["short", "and another"] {
            let deadline = Deadline::new("send_timeout", Duration::from_millis(10), Instant::now());
            let failed = writer
                .send(&transport, Payload::Text(text), deadline)
                .expect_err("there is no room");
            assert!(!failed.aborts && matches!(failed.error, SendError::NotSent(_)), "{failed:?}");
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
                    Deadline::new("send_timeout", Duration::from_secs(10), Instant::now());
                transport.await_room_untouched(deadline)
            });
            while transport.stuck_since().is_none() {
                std::thread::yield_now();
            }
            theirs.set_nonblocking(true).expect("it is a socket");
            while theirs.read(&mut [0; 65536]).is_ok() {}
            assert!(waits.join().expect("it does not panic").is_ok());
        });
        // Whoever asked for room compresses now, and takes the time that it takes while it holds
        // the writer.
        assert_eq!(transport.stuck_since(), None);
    }
}
