//! Text that is safe for a terminal, whoever wrote it.

use std::fmt::{self, Write};

/// Displays text with its control characters shown, not obeyed: a line feed as `\n`, an escape as
/// `\u{1b}`. The characters that reorder text (Unicode Technical Report 36, section 3.2) are shown
/// in the same way, and so are separators of lines and invisible characters that nothing needs.
pub(crate) struct Visible<'a>(pub(crate) &'a str);

impl fmt::Display for Visible<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(steers) {
            f.write_str(&rest[..at])?;
            let mut characters = rest[at..].chars();
            let character = characters.next().expect("one was found there");
            write!(f, "{}", character.escape_default())?;
            rest = characters.as_str();
        }
        f.write_str(rest)
    }
}

/// Returns whether a terminal could do something else than to show this character.
fn steers(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
                | '\u{feff}'
                // Invisible, and of no use where text is only looked at.
                | '\u{ad}'
                | '\u{200b}'
                | '\u{2060}'..='\u{2064}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Displays a server's text after a colon: quoted, on one line and of limited length.
pub(crate) struct Quoted<'a>(pub(crate) Option<&'a str>);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.map(|text| text.chars().take(200).collect::<String>()) {
            Some(text) if !text.is_empty() => write!(f, ": \"{}\"", Visible(&text)),
            _ => Ok(()),
        }
    }
}

/// Displays bytes as `hexdump -C` does: sixteen on a line, behind their offset and before their
/// ASCII characters. The last line is the length, and each ends with a line feed.
pub(crate) struct Hexdump<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hexdump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, row) in self.0.chunks(16).enumerate() {
            write!(f, "{:08x} ", number * 16)?;
            for place in 0..16 {
                if place == 8 {
                    f.write_char(' ')?;
                }
                match row.get(place) {
                    Some(byte) => write!(f, " {byte:02x}")?,
                    None => f.write_str("   ")?,
                }
            }
            f.write_str("  |")?;
            for &byte in row {
                let is_visible = byte.is_ascii_graphic() || byte == b' ';
                f.write_char(if is_visible { char::from(byte) } else { '.' })?;
            }
            f.write_str("|\n")?;
        }
        writeln!(f, "{:08x}", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_steer_a_terminal_is_shown() {
        for (text, shown) in [
            ("plain äöü 日本 🦀", "plain äöü 日本 🦀"),
            ("a\x1b[2Jb", "a\\u{1b}[2Jb"),
            ("a\nb\rc\td\x07", "a\\nb\\rc\\td\\u{7}"),
            ("\u{9b}31m \x7f", "\\u{9b}31m \\u{7f}"),
            ("abc\u{202e}fed", "abc\\u{202e}fed"),
            ("\u{2028}\u{feff}", "\\u{2028}\\u{feff}"),
            ("a\u{200b}b\u{e0041}", "a\\u{200b}b\\u{e0041}"),
            ("👩\u{200d}🚀", "👩\u{200d}🚀"),
            // As it came: programs that read the output would otherwise see two backslashes.
            (r#"{"a":"\n"}"#, r#"{"a":"\n"}"#),
        ] {
            assert_eq!(Visible(text).to_string(), shown);
        }
    }

    #[test]
    fn a_hexdump_is_that_of_hexdump() {
        let bytes: Vec<u8> = (b'A'..b'A' + 18).chain([0, 255]).collect();
        let expected = "\
00000000  41 42 43 44 45 46 47 48  49 4a 4b 4c 4d 4e 4f 50  |ABCDEFGHIJKLMNOP|
00000010  51 52 00 ff                                       |QR..|
00000014
";
        assert_eq!(Hexdump(&bytes).to_string(), expected);
        assert_eq!(Hexdump(&[]).to_string(), "00000000\n");
    }
}
