//! The settings of permessage-deflate.

/// Settings of permessage-deflate (RFC 7692), for [`Builder::compress`](crate::Builder::compress).
///
/// Compression saves bandwidth and costs time and memory. Measured for each connection, and for as
/// long as it is open: the inflating engine takes 55 KiB whatever its window, the deflating one 371
/// KiB with a window of 15 bits, 259 KiB with 12 and 245 KiB with 9. That is the same with context
/// takeover (the window lives on from message to message) and without (the engines start anew, and
/// keep their memory): going without it makes compression worse, and saves memory only at the
/// server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deflate {
    pub(super) client_no_context_takeover: bool,
    pub(super) server_no_context_takeover: bool,
    pub(super) client_max_window_bits: u8,
    pub(super) offers_client_max_window_bits: bool,
    pub(super) server_max_window_bits: Option<u8>,
    pub(super) threshold: usize,
    pub(super) level: u32,
}

impl Default for Deflate {
    fn default() -> Self {
        Deflate {
            client_no_context_takeover: false,
            server_no_context_takeover: false,
            client_max_window_bits: 15,
            offers_client_max_window_bits: true,
            server_max_window_bits: None,
            threshold: 128,
            level: 6,
        }
    }
}

impl Deflate {
    /// Context takeover both ways, 15-bit windows, messages of 128 bytes and more compressed at
    /// level 6.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts each message that we send with an empty window: worse compression. Defaults to off.
    pub fn client_no_context_takeover(mut self) -> Self {
        self.client_no_context_takeover = true;
        self
    }

    /// Asks the server to start each of its messages with an empty window. A second offer without
    /// any parameter follows, for servers that decline this one. Defaults to off.
    pub fn server_no_context_takeover(mut self) -> Self {
        self.server_no_context_takeover = true;
        self
    }

    /// The largest window of our engine, in bits, 9 to 15. Defaults to 15. The server may ask for
    /// less.
    ///
    /// # Panics
    /// If `bits` is outside 9 to 15.
    pub fn client_max_window_bits(mut self, bits: u8) -> Self {
        assert!((9..=15).contains(&bits), "a window of {bits} bits: 9 to 15 are possible");
        self.client_max_window_bits = bits;
        self
    }

    /// Leaves `client_max_window_bits` out of the offer, for servers that refuse an offer with it.
    /// The server may then not ask for a smaller window of ours (RFC 7692 section 7.1.2.2).
    /// Defaults to offering it.
    pub fn omit_client_max_window_bits(mut self) -> Self {
        self.offers_client_max_window_bits = false;
        self
    }

    /// Asks the server for a window of at most so many bits, 8 to 15. Defaults to not asking, which
    /// means 15.
    ///
    /// A server may decline an offer with this parameter, so a second offer without any parameter
    /// follows it (RFC 7692 section 7.1.2.1): such a server compresses with a window of 15 bits.
    /// Some servers answer 400 to the whole request instead. They are dialed once more with the
    /// second offer alone, as part of the same attempt and within its `connect_timeout`. Once a
    /// server has accepted that, the client's later dials of it begin with the second offer.
    ///
    /// # Panics
    /// If `bits` is outside 8 to 15.
    pub fn server_max_window_bits(mut self, bits: u8) -> Self {
        assert!((8..=15).contains(&bits), "a window of {bits} bits: 8 to 15 are possible");
        self.server_max_window_bits = Some(bits);
        self
    }

    /// Messages shorter than this go uncompressed. Defaults to 128 bytes.
    pub fn threshold(mut self, bytes: usize) -> Self {
        self.threshold = bytes;
        self
    }

    /// Sets the effort of compression: 0 (not at all) and 1 (fast) to 9. Defaults to 6.
    ///
    /// # Panics
    /// If `level` is above 9.
    pub fn level(mut self, level: u32) -> Self {
        assert!(level <= 9, "a level of {level}: 0 to 9 are possible");
        self.level = level;
        self
    }
}

/// The parameters that client and server agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeflateParams {
    pub(super) client_context_takeover: bool,
    pub(super) server_context_takeover: bool,
    pub(super) client_max_window_bits: u8,
    pub(super) server_max_window_bits: u8,
    pub(super) threshold: usize,
    pub(super) level: u32,
}
