//! A run of messages in one buffer.

use std::ops::Range;

use crate::event::{Arrival, MessageRef, Payload};

/// The payload bytes from which a chunk takes no further message.
const CHUNK_BYTES: usize = 64 * 1024;

/// The number of messages that a chunk takes.
const CHUNK_MESSAGES: usize = 1024;

/// The largest buffer that is kept for the next messages.
const KEPT_BYTES: usize = 512 * 1024;

/// Messages in the order in which they came, of which the oldest may have been read.
///
/// Text and binary payloads have a buffer each, so that text needs no second check.
#[derive(Default)]
pub(crate) struct Chunk {
    text: String,
    binary: Vec<u8>,
    records: Vec<Record>,
    /// Each `recv` that brought messages, referred to by records: their common part.
    recvs: Vec<Recv>,
    /// The keys of messages, one for each record. Empty where nothing is conflated.
    keys: Vec<Option<Range<usize>>>,
    key_bytes: Vec<u8>,
    /// The number of messages that have been read.
    read: usize,
    /// The payload and key bytes of the messages that have not been read.
    bytes: usize,
    /// About how many bytes in the buffers no record refers to.
    unused: usize,
}

/// One message of a chunk.
#[derive(Clone, Copy)]
struct Record {
    start: usize,
    len: usize,
    /// The index of its `recv`.
    recv: u32,
    kind: Kind,
}

/// A `recv` that brought messages.
#[derive(Clone, Copy)]
struct Recv {
    epoch: u64,
    arrival: Arrival,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Binary,
}

impl Recv {
    #[inline]
    fn is_same(&self, other: &Recv) -> bool {
        (self.epoch, self.arrival.at, self.arrival.kernel)
            == (other.epoch, other.arrival.at, other.arrival.kernel)
    }
}

impl Chunk {
    /// Returns the number of unread messages.
    pub(crate) fn len(&self) -> usize {
        self.records.len() - self.read
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the payload and key bytes of the unread messages.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns `true` if the next message belongs into another chunk.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.text.len() + self.binary.len() >= CHUNK_BYTES || self.records.len() >= CHUNK_MESSAGES
    }

    /// Returns `true` if moving this chunk whole wastes little of its buffers.
    pub(crate) fn is_half_full(&self) -> bool {
        self.bytes >= CHUNK_BYTES / 2 || self.len() >= CHUNK_MESSAGES / 2
    }

    /// Returns `true` if `messages` of `bytes` fit behind those that are here.
    pub(crate) fn fits(&self, messages: usize, bytes: usize) -> bool {
        self.text.len() + self.binary.len() + bytes <= CHUNK_BYTES
            && self.records.len() + messages <= CHUNK_MESSAGES
    }

    /// Copies a message to the end.
    #[inline]
    pub(crate) fn push(&mut self, message: MessageRef<'_>) {
        let record = self.store(message);
        self.records.push(record);
        self.bytes += record.len;
    }

    /// Copies a message to the end, and its key.
    pub(crate) fn push_keyed(&mut self, message: MessageRef<'_>, key: Option<&[u8]>) {
        self.push(message);
        let range = key.map(|key| {
            let start = self.key_bytes.len();
            self.key_bytes.extend_from_slice(key);
            self.bytes += key.len();
            start..self.key_bytes.len()
        });
        self.keys.push(range);
    }

    #[inline]
    fn store(&mut self, message: MessageRef<'_>) -> Record {
        let (start, len, kind) = match message.payload() {
            Payload::Text(text) => {
                let start = self.text.len();
                self.text.push_str(text);
                (start, text.len(), Kind::Text)
            }
            Payload::Binary(bytes) => {
                let start = self.binary.len();
                self.binary.extend_from_slice(bytes);
                (start, bytes.len(), Kind::Binary)
            }
        };
        Record { start, len, recv: self.recv_of(message), kind }
    }

    /// Returns the index of the `recv` that brought a message.
    #[inline]
    fn recv_of(&mut self, message: MessageRef<'_>) -> u32 {
        let recv = Recv { epoch: message.epoch(), arrival: message.arrival() };
        if !self.recvs.last().is_some_and(|last| last.is_same(&recv)) {
            self.recvs.push(recv);
        }
        // Every one has a message here, or counts as unused: there are not so many.
        (self.recvs.len() - 1) as u32
    }

    /// Copies the unread messages of `other` to the end. Keys stay behind.
    pub(crate) fn append(&mut self, other: &Chunk) {
        for index in other.unread() {
            if let Some(message) = other.get(index) {
                self.push(message);
            }
        }
    }

    /// Returns the indices of the unread messages.
    pub(crate) fn unread(&self) -> Range<usize> {
        self.read..self.records.len()
    }

    /// Returns a message that has not been read.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<MessageRef<'_>> {
        self.records.get(index).map(|record| self.message(record))
    }

    #[inline]
    fn message(&self, record: &Record) -> MessageRef<'_> {
        let range = record.start..record.start + record.len;
        let payload = match record.kind {
            Kind::Text => Payload::Text(self.text.get(range).unwrap_or_default()),
            Kind::Binary => Payload::Binary(self.binary.get(range).unwrap_or_default()),
        };
        let Recv { epoch, arrival } = self.recvs[record.recv as usize];
        MessageRef::new(payload, epoch, arrival)
    }

    /// Returns the unread messages.
    pub(crate) fn messages(&self) -> impl ExactSizeIterator<Item = MessageRef<'_>> {
        self.records[self.read..].iter().map(|record| self.message(record))
    }

    /// Returns the index of the newest message.
    pub(crate) fn last_index(&self) -> usize {
        self.records.len().saturating_sub(1)
    }

    /// Returns `true` if the message has not been read and has this key.
    pub(crate) fn holds(&self, index: usize, key: &[u8]) -> bool {
        index >= self.read && self.key(index) == Some(key)
    }

    /// Returns `true` if messages may have keys.
    pub(crate) fn is_keyed(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Returns the key of a message.
    pub(crate) fn key(&self, index: usize) -> Option<&[u8]> {
        let range = self.keys.get(index)?.clone()?;
        self.key_bytes.get(range)
    }

    /// Returns the payload and key bytes of a message.
    pub(crate) fn cost(&self, index: usize) -> usize {
        let payload = self.records.get(index).map_or(0, |record| record.len);
        payload + self.key(index).map_or(0, <[u8]>::len)
    }

    /// Marks the oldest unread message as read.
    #[inline]
    pub(crate) fn advance(&mut self) {
        if self.is_empty() {
            return;
        }
        self.bytes -= match self.keys.is_empty() {
            true => self.records[self.read].len,
            false => self.cost(self.read),
        };
        self.read += 1;
    }

    /// Puts another message into the place of one, whose key it has.
    pub(crate) fn replace(&mut self, index: usize, message: MessageRef<'_>) {
        let record = self.store(message);
        let Some(before) = self.records.get_mut(index) else { return };
        let before = std::mem::replace(before, record);
        self.bytes = self.bytes - before.len + record.len;
        self.unused += before.len + std::mem::size_of::<Recv>();
        // The buffers hold at most about as much again as the messages take.
        if self.unused > CHUNK_BYTES && self.unused > self.bytes {
            self.compact();
        }
    }

    /// Gives back the room of replaced messages, if that is most of what is in use.
    pub(crate) fn reclaim(&mut self) {
        if self.unused > self.bytes {
            self.compact();
        }
    }

    fn compact(&mut self) {
        let mut compacted = Chunk::default();
        for index in 0..self.records.len() {
            let unread = if index < self.read { None } else { self.get(index) };
            let record = match unread {
                Some(message) => compacted.store(message),
                // A message that has been read keeps its index.
                None => Record { start: 0, len: 0, recv: 0, kind: Kind::Text },
            };
            compacted.records.push(record);
        }
        self.text = compacted.text;
        self.binary = compacted.binary;
        self.records = compacted.records;
        self.recvs = compacted.recvs;
        self.unused = 0;
    }

    /// Forgets all messages, and keeps buffers of a usual size.
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.binary.clear();
        self.records.clear();
        self.recvs.clear();
        self.keys.clear();
        self.key_bytes.clear();
        (self.read, self.bytes, self.unused) = (0, 0, 0);
        if self.text.capacity() + self.binary.capacity() + self.key_bytes.capacity() > KEPT_BYTES {
            *self = Chunk::default();
        }
    }

    /// Returns the number of bytes that the buffers take.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.text.capacity()
            + self.binary.capacity()
            + self.key_bytes.capacity()
            + self.records.capacity() * std::mem::size_of::<Record>()
            + self.recvs.capacity() * std::mem::size_of::<Recv>()
            + self.keys.capacity() * std::mem::size_of::<Option<Range<usize>>>()
    }
}
