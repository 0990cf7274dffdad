//! The events that nobody has read yet, in their order and within their bounds. Pure data: no
//! thread, no lock, no clock.

use std::collections::{HashMap, VecDeque};
use std::error::Error as StdError;
use std::hash::BuildHasher;

use http::HeaderMap;

use crate::config::queue_bounds::{Bounds, WhenFull};
use crate::error::Error;
use crate::event::{Event, Lagged, MessageRef};
use crate::queue::chunk::Chunk;
use crate::session_event::{SessionEvent, SubscriptionState};

/// The number of notices (openings, ends, failed dials) that are kept beside the messages.
const NOTICES: usize = 1024;

/// The number of empty chunks that are kept for the next messages, at least. A queue that has room
/// for more keeps more, until a quiet while has passed.
const SPARES: usize = 4;

/// The number of payload bytes, and of messages, for which a spare chunk may be kept.
const PER_SPARE: (usize, usize) = (64 * 1024, 256);

/// Chunks of messages, and the notices that stand between messages.
///
/// Messages are numbered. A notice stands before the message whose number it has, so that dropping
/// the oldest messages touches the front of the first chunk alone.
pub(crate) struct Backlog {
    bounds: Bounds,
    chunks: VecDeque<Chunk>,
    /// The number of the first chunk.
    first_chunk: u64,
    /// The number of the oldest message, which the next message has if there is none.
    first_message: u64,
    messages: usize,
    /// The payload and key bytes of the messages.
    bytes: usize,
    notices: VecDeque<Notice>,
    /// The number of notices without the lags. A message or another notice stands between two
    /// lags, so they need no bound of their own.
    notice_count: usize,
    notice_bytes: usize,
    /// The places of the newest messages with a key, by the hash of their key. A place may be
    /// outdated.
    places: HashMap<u64, Place>,
    lost: Lagged,
    conflated: u64,
    spares: Vec<Chunk>,
}

/// The place of a message: the number of its chunk, and its index there.
#[derive(Clone, Copy)]
struct Place {
    chunk: u64,
    index: usize,
}

/// Anything but a message.
struct Notice {
    /// The number of the message before which it stands.
    at: u64,
    content: Content,
}

enum Content {
    Event { event: Box<Event>, bytes: usize },
    Lagged(Lagged),
}

impl Notice {
    fn is_lag(&self) -> bool {
        matches!(self.content, Content::Lagged(_))
    }
}

/// The reason why a chunk did not go in whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stuck {
    /// The rule is `Block`: the rest is still in the chunk.
    NoRoom,
    /// The rule is `Disconnect`: the rest is lost.
    Lagged,
}

/// The part of the backlog that a consumer takes at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    One,
    /// A chunk, with the notices in it and behind it.
    Chunk,
}

impl Backlog {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Backlog {
            bounds,
            chunks: VecDeque::new(),
            // Put back chunks and messages are numbered downwards.
            first_chunk: 1 << 32,
            first_message: 1 << 32,
            messages: 0,
            bytes: 0,
            notices: VecDeque::new(),
            notice_count: 0,
            notice_bytes: 0,
            places: HashMap::new(),
            lost: Lagged { lost: 0, lost_notices: 0 },
            conflated: 0,
            spares: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages == 0 && self.notices.is_empty()
    }

    /// Returns the number of events.
    pub(crate) fn len(&self) -> usize {
        self.messages + self.notices.len()
    }

    /// Returns the number of events lost so far.
    pub(crate) fn lost(&self) -> Lagged {
        self.lost
    }

    /// Returns the number of messages replaced so far.
    pub(crate) fn conflated(&self) -> u64 {
        self.conflated
    }

    /// Appends a notice. The oldest notices that make room for it are moved to `dropped`: they may
    /// hold values of the program's, which must not be dropped under a lock.
    pub(crate) fn push_notice(
        &mut self,
        event: Box<Event>,
        bytes: usize,
        dropped: &mut Vec<Event>,
    ) {
        // What comes after a notice replaces nothing before it.
        self.places.clear();
        while self.notice_count >= NOTICES
            || (self.notice_count > 0 && self.notice_bytes + bytes > self.bounds.bytes)
        {
            let Some(index) = self.notices.iter().position(|notice| !notice.is_lag()) else {
                break;
            };
            let Some(oldest) = self.notices.remove(index) else { break };
            if let Content::Event { event, bytes } = oldest.content {
                self.notice_count -= 1;
                self.notice_bytes -= bytes;
                dropped.push(*event);
            }
            self.lost.lost_notices += 1;
            self.note_loss(index, oldest.at, Lagged { lost: 0, lost_notices: 1 });
            self.merge_lags(index);
        }
        self.notice_count += 1;
        self.notice_bytes += bytes;
        let at = self.next_message();
        self.notices.push_back(Notice { at, content: Content::Event { event, bytes } });
    }

    /// Moves the messages of a chunk in, as far as the rule for a full queue lets it. The chunk is
    /// empty afterwards, unless there was no room.
    pub(crate) fn push(&mut self, chunk: &mut Chunk) -> Result<(), Stuck> {
        if chunk.is_empty() {
            chunk.clear();
            return Ok(());
        }
        let drops_oldest = self.bounds.when_full == WhenFull::DropOldest;
        if !chunk.is_keyed() && (drops_oldest || self.has_room_for_all(chunk)) {
            self.push_whole(chunk);
            while self.is_over() && self.messages > 1 {
                self.drop_oldest();
            }
            return Ok(());
        }
        while !chunk.is_empty() {
            match self.push_first(chunk) {
                Ok(()) => chunk.advance(),
                Err(Stuck::NoRoom) => return Err(Stuck::NoRoom),
                Err(Stuck::Lagged) => {
                    self.lose_all(chunk);
                    return Err(Stuck::Lagged);
                }
            }
        }
        chunk.clear();
        Ok(())
    }

    /// Counts the messages of a chunk as lost.
    pub(crate) fn lose_all(&mut self, chunk: &mut Chunk) {
        if !chunk.is_empty() {
            self.lose_newest(chunk.len() as u64);
        }
        chunk.clear();
    }

    fn push_whole(&mut self, chunk: &mut Chunk) {
        self.messages += chunk.len();
        self.bytes += chunk.bytes();
        if let Some(tail) = self.chunks.back_mut() {
            // Many small chunks would take more memory than what they hold.
            if !chunk.is_half_full() && tail.fits(chunk.len(), chunk.bytes()) {
                tail.append(chunk);
                chunk.clear();
                return;
            }
        }
        let spare = self.spares.pop().unwrap_or_default();
        self.chunks.push_back(std::mem::replace(chunk, spare));
    }

    /// Copies the first message of a chunk in.
    fn push_first(&mut self, chunk: &Chunk) -> Result<(), Stuck> {
        let index = chunk.unread().start;
        let Some(message) = chunk.get(index) else { return Ok(()) };
        let key = chunk.key(index);
        loop {
            let place = key.and_then(|key| self.find(key));
            let (messages, freed) = match place {
                Some(place) => (0, self.cost(place)),
                None => (1, 0),
            };
            let bytes = self.bytes - freed + chunk.cost(index);
            // A message larger than the whole bound is let into an empty queue: it could never be
            // delivered otherwise.
            let is_alone = self.messages + messages == 1;
            let has_room = self.messages + messages <= self.bounds.messages
                && bytes <= self.bounds.bytes
                || is_alone;
            match (self.bounds.when_full, place) {
                (_, Some(place)) if has_room => {
                    self.bytes = bytes;
                    self.replace(place, message);
                    return Ok(());
                }
                (_, None) if has_room => {
                    self.messages += 1;
                    self.bytes = bytes;
                    self.append(message, key, chunk.is_keyed());
                    return Ok(());
                }
                (WhenFull::DropOldest, _) => self.drop_oldest(),
                (WhenFull::DropNewest, _) => {
                    self.lose_newest(1);
                    return Ok(());
                }
                (WhenFull::Block, _) => return Err(Stuck::NoRoom),
                (WhenFull::Disconnect, _) => return Err(Stuck::Lagged),
            }
        }
    }

    fn append(&mut self, message: MessageRef<'_>, key: Option<&[u8]>, is_keyed: bool) {
        // Replaced messages fill a chunk too, and nobody would read them away.
        if let Some(tail) = self.chunks.back_mut().filter(|tail| tail.is_full()) {
            tail.reclaim();
        }
        if self.chunks.back().is_none_or(Chunk::is_full) {
            self.chunks.push_back(self.spares.pop().unwrap_or_default());
        }
        let number = self.first_chunk + self.chunks.len() as u64 - 1;
        let Some(tail) = self.chunks.back_mut() else { return };
        if !is_keyed {
            return tail.push(message);
        }
        tail.push_keyed(message, key);
        let Some(key) = key else { return };
        let place = Place { chunk: number, index: tail.last_index() };
        self.places.insert(self.places.hasher().hash_one(key), place);
        if self.places.len() > 2 * self.messages + 64 {
            let Backlog { places, chunks, first_chunk, .. } = self;
            places.retain(|_, place| {
                let chunk = place.chunk.checked_sub(*first_chunk);
                let chunk = chunk.and_then(|index| chunks.get(index as usize));
                chunk.is_some_and(|chunk| chunk.unread().contains(&place.index))
            });
        }
    }

    /// Returns the place of the unread message with this key.
    fn find(&self, key: &[u8]) -> Option<Place> {
        let place = *self.places.get(&self.places.hasher().hash_one(key))?;
        // Two keys may have the same hash.
        self.chunk(place)?.holds(place.index, key).then_some(place)
    }

    fn chunk(&self, place: Place) -> Option<&Chunk> {
        self.chunks.get(place.chunk.checked_sub(self.first_chunk)? as usize)
    }

    fn cost(&self, place: Place) -> usize {
        self.chunk(place).map_or(0, |chunk| chunk.cost(place.index))
    }

    fn replace(&mut self, place: Place, message: MessageRef<'_>) {
        let index = place.chunk.saturating_sub(self.first_chunk) as usize;
        if let Some(chunk) = self.chunks.get_mut(index) {
            chunk.replace(place.index, message);
            self.conflated += 1;
        }
    }

    fn has_room_for_all(&self, chunk: &Chunk) -> bool {
        self.messages + chunk.len() <= self.bounds.messages
            && self.bytes.saturating_add(chunk.bytes()) <= self.bounds.bytes
    }

    fn is_over(&self) -> bool {
        self.messages > self.bounds.messages || self.bytes > self.bounds.bytes
    }

    /// Returns the number that the next message gets.
    fn next_message(&self) -> u64 {
        self.first_message + self.messages as u64
    }

    fn lose_newest(&mut self, count: u64) {
        self.lost.lost += count;
        let (index, at) = (self.notices.len(), self.next_message());
        self.note_loss(index, at, Lagged { lost: count, lost_notices: 0 });
    }

    fn drop_oldest(&mut self) {
        let number = self.first_message;
        self.drop_front();
        self.lost.lost += 1;
        // Behind the notices that stood before it.
        let index = self.notices.partition_point(|notice| notice.at <= number);
        self.note_loss(index, number + 1, Lagged { lost: 1, lost_notices: 0 });
        self.merge_lags(index);
    }

    /// Makes one of two lags that have come to stand side by side near this index.
    fn merge_lags(&mut self, index: usize) {
        for second in [index + 1, index] {
            let Some(first) = second.checked_sub(1) else { continue };
            let (Some(one), Some(two)) = (self.notices.get(first), self.notices.get(second)) else {
                continue;
            };
            let (Content::Lagged(_), Content::Lagged(more)) = (&one.content, &two.content) else {
                continue;
            };
            let more = *more;
            if one.at.max(self.first_message) != two.at.max(self.first_message) {
                continue;
            }
            self.notices.remove(second);
            if let Some(Notice { content: Content::Lagged(lag), .. }) = self.notices.get_mut(first)
            {
                lag.lost += more.lost;
                lag.lost_notices += more.lost_notices;
            }
        }
    }

    /// Removes the oldest message.
    fn drop_front(&mut self) {
        let Some(chunk) = self.chunks.front_mut() else { return };
        let before = chunk.bytes();
        chunk.advance();
        self.bytes -= before - chunk.bytes();
        self.messages -= 1;
        self.first_message += 1;
        if chunk.is_empty() {
            let chunk = self.chunks.pop_front();
            self.first_chunk += 1;
            chunk.into_iter().for_each(|chunk| self.recycle(chunk));
        }
    }

    fn recycle(&mut self, mut chunk: Chunk) {
        let (bytes, messages) = PER_SPARE;
        let most = (self.bounds.bytes / bytes).min(self.bounds.messages / messages).max(SPARES);
        if self.chunks.len() + self.spares.len() < most {
            chunk.clear();
            self.spares.push(chunk);
        }
    }

    /// Counts a loss at a place among the notices: in the lag next to it, if no message stands
    /// between, or in a new one.
    fn note_loss(&mut self, index: usize, at: u64, loss: Lagged) {
        let at = at.max(self.first_message);
        for near in [index.checked_sub(1), Some(index)].into_iter().flatten() {
            if let Some(Notice { at: there, content: Content::Lagged(lag) }) =
                self.notices.get_mut(near)
            {
                if (*there).max(self.first_message) == at {
                    lag.lost += loss.lost;
                    lag.lost_notices += loss.lost_notices;
                    return;
                }
            }
        }
        self.notices.insert(index, Notice { at, content: Content::Lagged(loss) });
    }

    /// Moves the oldest events to a consumer that has none left.
    pub(crate) fn take(&mut self, taken: &mut Taken, share: Share) {
        taken.first = self.first_message;
        match share {
            Share::One => self.take_one(taken),
            Share::Chunk => {
                if let Some(chunk) = self.chunks.pop_front() {
                    self.first_chunk += 1;
                    self.messages -= chunk.len();
                    self.bytes -= chunk.bytes();
                    self.first_message += chunk.len() as u64;
                    let read = std::mem::replace(&mut taken.chunk, chunk);
                    self.recycle(read);
                }
                while self.notices.front().is_some_and(|notice| notice.at <= self.first_message) {
                    self.take_notice(taken);
                }
            }
        }
    }

    fn take_one(&mut self, taken: &mut Taken) {
        if self.notices.front().is_some_and(|notice| notice.at <= self.first_message) {
            return self.take_notice(taken);
        }
        let Some(chunk) = self.chunks.front_mut() else { return };
        if chunk.len() > 1 {
            taken.chunk.clear();
            chunk.messages().take(1).for_each(|message| taken.chunk.push(message));
        } else {
            // A message that is large has a chunk to itself.
            std::mem::swap(chunk, &mut taken.chunk);
            let number = self.first_message;
            self.bytes -= taken.chunk.bytes();
            self.messages -= 1;
            self.first_message = number + 1;
            let read = self.chunks.pop_front();
            self.first_chunk += 1;
            read.into_iter().for_each(|chunk| self.recycle(chunk));
            return;
        }
        self.drop_front();
    }

    fn take_notice(&mut self, taken: &mut Taken) {
        let Some(notice) = self.notices.pop_front() else { return };
        if let Content::Event { bytes, .. } = notice.content {
            self.notice_count -= 1;
            self.notice_bytes -= bytes;
        }
        taken.notices.push_back(notice);
    }

    /// Puts what a consumer has not read back in front.
    pub(crate) fn put_back(&mut self, taken: &mut Taken) {
        // Others may have taken messages meanwhile: everything is numbered from what is here now.
        self.places.clear();
        let first = self.first_message;
        for notice in self.notices.iter_mut().take_while(|notice| notice.at < first) {
            notice.at = first;
        }
        let end = taken.first + taken.chunk.len() as u64;
        for mut notice in taken.notices.drain(..).rev() {
            notice.at = first - end.saturating_sub(notice.at).min(taken.chunk.len() as u64);
            if let Content::Event { bytes, .. } = notice.content {
                self.notice_count += 1;
                self.notice_bytes += bytes;
            }
            self.notices.push_front(notice);
        }
        if !taken.chunk.is_empty() {
            let chunk = std::mem::take(&mut taken.chunk);
            self.first_chunk -= 1;
            self.first_message -= chunk.len() as u64;
            self.messages += chunk.len();
            self.bytes += chunk.bytes();
            self.chunks.push_front(chunk);
        }
    }

    /// Gives back memory that has not been needed for a while.
    pub(crate) fn shrink(&mut self) {
        self.spares = Vec::new();
        self.chunks.shrink_to(SPARES);
        self.notices.shrink_to(NOTICES / 16);
        self.places.shrink_to(0);
    }
}

#[cfg(test)]
impl Backlog {
    /// Returns the number of bytes that the buffers take.
    pub(crate) fn capacity(&self) -> usize {
        let chunks: usize = self.chunks.iter().chain(&self.spares).map(Chunk::capacity).sum();
        chunks
            + self.notices.capacity() * std::mem::size_of::<Notice>()
            + self.places.capacity() * std::mem::size_of::<(u64, Place)>()
    }
}

/// Events that a consumer has taken out of the backlog and not handed on.
#[derive(Default)]
pub(crate) struct Taken {
    chunk: Chunk,
    notices: VecDeque<Notice>,
    /// The number of the first unread message.
    first: u64,
}

/// An event of [`Taken`].
pub(crate) enum Item<'a> {
    Message(MessageRef<'a>),
    Lagged(Lagged),
    Notice(&'a Event),
}

impl Taken {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunk.is_empty() && self.notices.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.chunk.len() + self.notices.len()
    }

    /// Takes the oldest event out.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Event> {
        if self.notices.front().is_some_and(|notice| notice.at <= self.first) {
            return self.notices.pop_front().map(|notice| match notice.content {
                Content::Event { event, .. } => *event,
                Content::Lagged(lag) => Event::Lagged(lag),
            });
        }
        let message = self.chunk.messages().next()?.to_owned();
        self.chunk.advance();
        self.first += 1;
        Some(Event::Message(message))
    }

    /// Returns the events in their order.
    pub(crate) fn iter(&self) -> Items<'_> {
        Items { taken: self, next: self.chunk.unread().start, notices: 0, number: self.first }
    }

    /// Forgets everything, and keeps buffers of a usual size.
    pub(crate) fn clear(&mut self) {
        self.chunk.clear();
        self.notices.clear();
        self.notices.shrink_to(NOTICES);
    }
}

/// The events of [`Taken`], one by one.
#[derive(Clone)]
pub(crate) struct Items<'a> {
    taken: &'a Taken,
    /// The index of the next message.
    next: usize,
    /// The number of notices returned so far.
    notices: usize,
    /// The number of the next message.
    number: u64,
}

impl<'a> Iterator for Items<'a> {
    type Item = Item<'a>;

    #[inline]
    fn next(&mut self) -> Option<Item<'a>> {
        if let Some(notice) = self.taken.notices.get(self.notices) {
            if notice.at <= self.number {
                self.notices += 1;
                return Some(match &notice.content {
                    Content::Event { event, .. } => Item::Notice(event),
                    Content::Lagged(lag) => Item::Lagged(*lag),
                });
            }
        }
        let message = self.taken.chunk.get(self.next)?;
        self.next += 1;
        self.number += 1;
        Some(Item::Message(message))
    }
}

/// Returns about how many bytes a notice takes.
pub(crate) fn notice_bytes(event: &Event) -> usize {
    std::mem::size_of::<Event>()
        + match event {
            Event::Opened(opened) => {
                header_bytes(&opened.headers)
                    + opened.subprotocol.as_ref().map_or(0, String::len)
                    + opened.carried.bytes()
            }
            Event::Disconnected(disconnect) => {
                disconnect.close.reason.len() + error_bytes(&disconnect.error)
            }
            Event::DialFailed(failure) => error_bytes(&failure.error),
            Event::Stopped(stopped) => error_bytes(&stopped.reason),
            Event::Session(event) => session_event_bytes(event),
            Event::Message(_) | Event::Lagged(_) => 0,
        }
}

fn session_event_bytes(event: &SessionEvent) -> usize {
    match event {
        SessionEvent::Subscription { topic, state, .. } => {
            let reason = match state {
                SubscriptionState::Rejected(rejection) => rejection.reason().len(),
                _ => 0,
            };
            topic.len() + reason
        }
        SessionEvent::Silent { topic, .. } => topic.len(),
        _ => 0,
    }
}

/// About the number of bytes that a header takes in a map beside its name and its value.
const HEADER_BYTES: usize = 224;

fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| HEADER_BYTES + name.as_str().len() + value.len()).sum()
}

fn error_bytes(error: &Error) -> usize {
    let response = error.response();
    let response = response.map_or(0, |it| it.body().len() + header_bytes(it.headers()));
    // Only causes of this crate are looked into: another may be the program's, whose code is not to
    // be called here.
    let cause = error.source().and_then(|cause| cause.downcast_ref::<Error>());
    256 + response + cause.map_or(0, error_bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rand::RngExt;
    use rand::rngs::StdRng;

    use super::*;
    use crate::event::{Arrival, Payload, Stopped};
    use crate::property::{self, vec};

    /// An event of the reference model.
    #[derive(Clone, Debug, PartialEq)]
    enum Told {
        Message(Option<u8>, Vec<u8>),
        Notice(usize),
        Lagged(u64, u64),
    }

    /// The rules in their plainest form: one event after the other, in one list.
    struct Reference {
        bounds: Bounds,
        events: Vec<Told>,
        is_full: bool,
        /// No message before this index may be replaced.
        barrier: usize,
        conflated: u64,
    }

    impl Reference {
        fn cost(event: &Told) -> usize {
            match event {
                Told::Message(key, bytes) => bytes.len() + usize::from(key.is_some()),
                _ => 0,
            }
        }

        fn messages(&self) -> usize {
            self.events.iter().filter(|event| matches!(event, Told::Message(..))).count()
        }

        fn lag(&mut self, index: usize, lost: u64, lost_notices: u64) {
            self.add_lag(index, lost, lost_notices);
            let mut second = 1;
            while second < self.events.len() {
                match (&self.events[second - 1], &self.events[second]) {
                    (Told::Lagged(lost, notices), Told::Lagged(more, more_notices)) => {
                        self.events[second - 1] = Told::Lagged(lost + more, notices + more_notices);
                        self.events.remove(second);
                        self.barrier -= usize::from(second < self.barrier);
                    }
                    _ => second += 1,
                }
            }
        }

        fn add_lag(&mut self, index: usize, lost: u64, lost_notices: u64) {
            for near in [index.checked_sub(1), Some(index)].into_iter().flatten() {
                if let Some(Told::Lagged(messages, notices)) = self.events.get_mut(near) {
                    *messages += lost;
                    *notices += lost_notices;
                    return;
                }
            }
            self.events.insert(index, Told::Lagged(lost, lost_notices));
            self.barrier += usize::from(index < self.barrier);
        }

        /// Returns `false` if there is no room and the rule is to block.
        fn push(&mut self, key: Option<u8>, bytes: &[u8]) -> bool {
            let new = Told::Message(key, bytes.to_vec());
            if self.is_full {
                self.lag(self.events.len(), 1, 0);
                return true;
            }
            loop {
                let same = self.events.iter().enumerate().skip(self.barrier).find(|(_, event)| {
                    key.is_some() && matches!(event, Told::Message(other, _) if *other == key)
                });
                let same = same.map(|(index, _)| index);
                let freed = same.map_or(0, |index| Self::cost(&self.events[index]));
                let messages = self.messages() + usize::from(same.is_none());
                let cost: usize = self.events.iter().map(Self::cost).sum();
                let cost = cost - freed + Self::cost(&new);
                if messages == 1 || messages <= self.bounds.messages && cost <= self.bounds.bytes {
                    match same {
                        Some(index) => {
                            self.conflated += 1;
                            self.events[index] = new;
                        }
                        None => self.events.push(new),
                    }
                    return true;
                }
                match self.bounds.when_full {
                    WhenFull::Block => return false,
                    WhenFull::Disconnect => {
                        self.is_full = true;
                        self.lag(self.events.len(), 1, 0);
                        return true;
                    }
                    WhenFull::DropNewest => {
                        self.lag(self.events.len(), 1, 0);
                        return true;
                    }
                    WhenFull::DropOldest => {
                        let oldest = self
                            .events
                            .iter()
                            .position(|event| matches!(event, Told::Message(..)))
                            .expect("there are some");
                        self.events.remove(oldest);
                        self.barrier -= usize::from(oldest < self.barrier);
                        self.lag(oldest, 1, 0);
                    }
                }
            }
        }

        fn push_notice(&mut self, size: usize) {
            let size_of = |event: &Told| match event {
                Told::Notice(size) => Some(*size),
                _ => None,
            };
            loop {
                let held: usize = self.events.iter().filter_map(size_of).sum();
                let oldest = self.events.iter().position(|event| size_of(event).is_some());
                let Some(oldest) = oldest.filter(|_| held + size > self.bounds.bytes) else {
                    break;
                };
                self.events.remove(oldest);
                self.lag(oldest, 0, 1);
            }
            self.events.push(Told::Notice(size));
            self.barrier = self.events.len();
        }
    }

    enum Step {
        /// The messages of a `recv`: their keys, and their payloads.
        Push(Vec<(Option<u8>, usize, bool)>),
        Notice(usize),
        TakeOne,
        TakeChunk,
        /// Takes a chunk, reads this many events and puts the rest back.
        PutBack(usize),
        Shrink,
    }

    fn step(rng: &mut StdRng) -> Step {
        match rng.random_range(0..12) {
            0..5 => Step::Push(vec(rng, 1..12, |rng| {
                let key = rng.random::<bool>().then(|| rng.random_range(0..4));
                (key, rng.random_range(0..40), rng.random())
            })),
            5 | 6 => Step::Notice(rng.random_range(1..60)),
            7 | 8 => Step::TakeOne,
            9 => Step::TakeChunk,
            10 => Step::PutBack(rng.random_range(0..4)),
            _ => Step::Shrink,
        }
    }

    fn told(event: &Event, is_keyed: bool) -> Told {
        match event {
            Event::Message(message) => {
                let bytes = message.bytes().to_vec();
                let key = bytes.first().filter(|key| is_keyed && **key < 4);
                Told::Message(key.copied(), bytes)
            }
            Event::Lagged(lag) => Told::Lagged(lag.lost, lag.lost_notices),
            Event::Stopped(stopped) => {
                let number = stopped.reason.to_string();
                Told::Notice(number.parse().expect("it is a number"))
            }
            other => panic!("{other:?}"),
        }
    }

    fn notice(size: usize) -> Box<Event> {
        let reason = Error::new(crate::ErrorKind::Io, size.to_string());
        Box::new(Event::Stopped(Stopped { reason }))
    }

    #[test]
    fn two_lags_never_stand_side_by_side() {
        for when_full in [WhenFull::Disconnect, WhenFull::DropOldest] {
            let mut backlog = Backlog::new(Bounds { messages: 2, bytes: 1 << 20, when_full });
            let (mut chunk, at) = (Chunk::default(), Instant::now());
            for _ in 0..3 * NOTICES {
                backlog.push_notice(notice(1), 1, &mut Vec::new());
                for _ in 0..5 {
                    let payload = Payload::Text("x");
                    chunk.push(MessageRef::new(payload, 1, Arrival { at, kernel: None }));
                }
                let _ = backlog.push(&mut chunk);
                backlog.push_notice(notice(1), 1, &mut Vec::new());
            }
            assert!(backlog.len() <= 2 * (NOTICES + 2) + 1, "{} events", backlog.len());
        }
    }

    #[test]
    fn replaced_messages_take_no_more_memory_than_those_that_are_there() {
        let bounds = Bounds { messages: 65_536, bytes: 4 << 20, when_full: WhenFull::Disconnect };
        let mut backlog = Backlog::new(bounds);
        let (mut chunk, at) = (Chunk::default(), Instant::now());
        for key in 0..500 {
            for _ in 0..33 {
                let text = format!("{key:04}{}", "x".repeat(1996));
                let message =
                    MessageRef::new(Payload::Text(&text), 1, Arrival { at, kernel: None });
                chunk.push_keyed(message, Some(&text.as_bytes()[..4]));
                backlog.push(&mut chunk).expect("there is room");
            }
        }
        assert_eq!(backlog.messages, 500);
        assert!(backlog.capacity() < 6 * backlog.bytes, "{} bytes", backlog.capacity());
    }

    #[test]
    fn any_steps_under_any_rule_give_what_the_reference_gives() {
        const RULES: [WhenFull; 4] =
            [WhenFull::Block, WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Disconnect];
        property::check(1000, |rng| {
            let steps = vec(rng, 0..40, step);
            let when_full = RULES[rng.random_range(0..RULES.len())];
            let (messages, bytes) = (rng.random_range(1..9), rng.random_range(1..150));
            let is_keyed: bool = rng.random();
            let bounds = Bounds { messages, bytes, when_full };
            let mut backlog = Backlog::new(bounds);
            let mut reference =
                Reference { bounds, events: Vec::new(), is_full: false, barrier: 0, conflated: 0 };
            let mut counter = 100u8;
            let at = Instant::now();
            let mut chunk = Chunk::default();
            let mut taken = Taken::default();
            for step in steps {
                match step {
                    Step::Push(messages) => {
                        let mut all = Vec::new();
                        for (key, length, is_text) in messages {
                            // The first byte is the key, the others tell messages apart.
                            counter = 100 + (counter + 1) % 28;
                            let key = key.filter(|_| is_keyed);
                            let mut payload = vec![counter; length];
                            payload.splice(0..0, key.or(is_keyed.then_some(99)));
                            let text = std::str::from_utf8(&payload).expect("it is ASCII");
                            let message = match is_text {
                                true => Payload::Text(text),
                                false => Payload::Binary(&payload),
                            };
                            let message = MessageRef::new(message, 1, Arrival { at, kernel: None });
                            match is_keyed {
                                true => chunk.push_keyed(message, key.map(|_| &payload[..1])),
                                false => chunk.push(message),
                            }
                            all.push((key, payload));
                        }
                        let stuck = backlog.push(&mut chunk);
                        let mut left = all.as_slice();
                        while let Some(((key, payload), rest)) = left.split_first() {
                            if !reference.push(*key, payload) {
                                break;
                            }
                            left = rest;
                        }
                        assert_eq!(stuck.is_err(), reference.is_full || !left.is_empty());
                        assert_eq!(chunk.len(), left.len());
                        // A client would wait for room, or end the connection.
                        reference.is_full = false;
                        chunk.clear();
                    }
                    Step::Notice(size) => {
                        let mut dropped = Vec::new();
                        backlog.push_notice(notice(size), size, &mut dropped);
                        reference.push_notice(size);
                    }
                    Step::TakeOne | Step::TakeChunk | Step::PutBack(_) => {
                        if backlog.is_empty() {
                            continue;
                        }
                        let share =
                            if matches!(step, Step::TakeOne) { Share::One } else { Share::Chunk };
                        backlog.take(&mut taken, share);
                        assert!(!taken.is_empty());
                        let borrowed = taken.iter().count();
                        assert_eq!(borrowed, taken.len());
                        let most = match step {
                            Step::TakeOne => 1,
                            Step::PutBack(most) => most.min(taken.len()),
                            _ => taken.len(),
                        };
                        for _ in 0..most {
                            let event = taken.pop().expect("there are as many");
                            assert_eq!(told(&event, is_keyed), reference.events.remove(0));
                            reference.barrier = reference.barrier.saturating_sub(1);
                        }
                        if matches!(step, Step::PutBack(_)) {
                            backlog.put_back(&mut taken);
                            reference.barrier = reference.events.len();
                        }
                        assert!(taken.is_empty());
                    }
                    Step::Shrink => backlog.shrink(),
                }
                let held: usize = reference.events.iter().map(Reference::cost).sum();
                assert_eq!(backlog.bytes, held);
                assert_eq!(backlog.messages, reference.messages());
                assert_eq!(backlog.len(), reference.events.len());
                assert_eq!(backlog.conflated(), reference.conflated);
                assert!(backlog.messages <= 1 || held <= bytes && backlog.messages <= messages);
            }
            while !backlog.is_empty() {
                backlog.take(&mut taken, Share::Chunk);
                while let Some(event) = taken.pop() {
                    assert_eq!(told(&event, is_keyed), reference.events.remove(0));
                }
            }
            assert!(reference.events.is_empty());
        });
    }
}
