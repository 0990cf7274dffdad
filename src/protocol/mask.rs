//! Masking of what a client sends (RFC 6455 section 5.3).

use rand::rngs::StdRng;
use rand::{Rng, make_rng};

/// Masking keys that a server cannot predict (RFC 6455 section 10.3): a ChaCha generator seeded by
/// the system, drawn a block at a time.
pub(crate) struct MaskingKeys {
    generator: StdRng,
}

impl MaskingKeys {
    pub(crate) fn new() -> Self {
        MaskingKeys { generator: make_rng() }
    }

    pub(crate) fn next(&mut self) -> [u8; 4] {
        self.generator.next_u32().to_ne_bytes()
    }
}

/// Appends `payload`, masked from the first byte of `key` on, to `out`.
pub(crate) fn put_masked(out: &mut Vec<u8>, payload: &[u8], key: [u8; 4]) {
    let start = out.len();
    out.extend_from_slice(payload);
    mask(&mut out[start..], key);
}

/// Masks in place (RFC 6455 section 5.3); the same again unmasks.
pub(crate) fn mask(bytes: &mut [u8], key: [u8; 4]) {
    // Words first: the compiler makes vector instructions of this loop.
    let word = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let mut words = bytes.chunks_exact_mut(8);
    for chunk in &mut words {
        let masked =
            u64::from_ne_bytes(chunk.try_into().expect("chunks_exact gives chunks of 8")) ^ word;
        chunk.copy_from_slice(&masked.to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masking_twice_gives_the_original_at_every_length() {
        let original: Vec<u8> = (0..100).collect();
        for len in 0..original.len() {
            let mut bytes = original[..len].to_vec();
            mask(&mut bytes, [1, 2, 3, 4]);
            for (index, byte) in bytes.iter().enumerate() {
                assert_eq!(*byte, original[index] ^ [1, 2, 3, 4][index % 4]);
            }
            mask(&mut bytes, [1, 2, 3, 4]);
            assert_eq!(bytes, original[..len]);
        }
    }

    #[test]
    fn masking_keys_do_not_repeat() {
        let mut keys = MaskingKeys::new();
        let distinct: std::collections::HashSet<_> = (0..1000).map(|_| keys.next()).collect();
        assert!(distinct.len() > 990);
    }

    #[test]
    fn what_is_put_masked_follows_what_is_there() {
        let mut out = vec![9, 9];
        put_masked(&mut out, &[1, 1, 1, 1, 1], [1, 2, 3, 4]);
        assert_eq!(out, [9, 9, 0, 3, 2, 5, 0]);
    }
}
