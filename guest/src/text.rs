//! Prose of a kind: common words, the commoner the more often, until a page is full.
//!
//! It is made word by word, not copied from a stock of sentences: a coder that sees more than
//! one page must not find whole passages again, which no real text would offer it.

use crate::content::{PageWords, next_random};

/// The commonest first; every token has at most eight bytes.
const TOKENS: [&str; 128] = [
    "the ", "of ", "and ", "a ", "to ", "in ", "is ", "you ", "that ", "it ", "he ", "was ",
    "for ", "on ", "are ", "as ", "with ", "his ", "they ", "I ", "at ", "be ", "this ", "have ",
    "from ", "or ", "one ", "had ", "by ", "word ", "but ", "not ", "what ", "all ", "were ",
    "we ", "when ", "your ", "can ", "said ", "there ", "use ", "an ", "each ", "which ", "she ",
    "do ", "how ", "their ", "if ", "will ", "up ", "other ", "about ", "out ", "many ", "then ",
    "them ", "these ", "so ", "some ", "her ", "would ", "make ", "like ", "him ", "into ",
    "time ", "has ", "look ", "two ", "more ", "write ", "go ", "see ", "number ", "no ", "way ",
    "could ", "people ", "my ", "than ", "first ", "water ", "been ", "call ", "who ", "oil ",
    "its ", "now ", "find ", "long ", "down ", "day ", "did ", "get ", "come ", "made ", "may ",
    "part ", "\n", "tern, ", "north. ", "south. ", "flew ", "1882, ", "sea; ", "winter ",
    "summer ", "Arctic ", "wing ", "egg, ", "nest. ", "coast ", "42 ", "7.5 ", "miles, ", "ship ",
    "ice ", "storm. ", "pole ", "chick ", "fish, ", "cold. ", "light ", "return ", "home. ",
    "year ",
];
/// How many draws there are: ten random bits.
const DRAWS: usize = 1024;
const DRAWS_PER_RANDOM: u32 = 6;

#[derive(Debug, Clone, Copy)]
struct Token {
    bytes: u64,
    bits: u32,
}

/// A table from ten random bits to a token.
#[derive(Debug)]
pub(crate) struct Prose {
    draws: Vec<Token>,
}

impl Prose {
    pub(crate) fn new() -> Self {
        // The square makes the first tokens common: half of all draws give the first 32.
        let token = |draw: usize| TOKENS[draw * draw * TOKENS.len() / (DRAWS * DRAWS)];
        Self { draws: (0..DRAWS).map(|draw| Token::new(token(draw))).collect() }
    }

    /// Fills a page; another key, another text.
    pub(crate) fn fill(&self, key: u64, page: &mut PageWords) {
        let mut state = key;
        let (mut random, mut draws_left) = (0, 0);
        let (mut pending, mut pending_bits) = (0_u64, 0);
        for word in page {
            while pending_bits < u64::BITS {
                if draws_left == 0 {
                    (random, draws_left) = (next_random(&mut state), DRAWS_PER_RANDOM);
                }
                let token = self.draw(random);
                random >>= 10;
                draws_left -= 1;
                if pending_bits + token.bits > u64::BITS {
                    // The token's end goes into the next word.
                    *word = pending | token.bytes << pending_bits;
                    let written = u64::BITS - pending_bits;
                    pending = token.bytes >> written;
                    pending_bits = u64::BITS + token.bits - written;
                } else {
                    pending |= token.bytes << pending_bits;
                    pending_bits += token.bits;
                    *word = pending;
                }
            }
            pending_bits -= u64::BITS;
            if pending_bits == 0 {
                pending = 0;
            }
        }
    }

    fn draw(&self, random: u64) -> Token {
        let draw = usize::try_from(random % 1024).expect("ten bits fit");
        self.draws[draw]
    }
}

impl Token {
    fn new(text: &str) -> Self {
        let mut bytes = [0; 8];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        let bits = u32::try_from(text.len() * 8).expect("a token has at most eight bytes");
        Self { bytes: u64::from_le_bytes(bytes), bits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prose(key: u64) -> String {
        let mut page = [0; 512];
        Prose::new().fill(key, &mut page);
        let bytes: Vec<u8> = page.iter().flat_map(|word| word.to_le_bytes()).collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_page_of_prose_is_made_of_whole_tokens() {
        for key in 0..50 {
            let text = prose(key);
            let tokens: Vec<&str> = text.split_inclusive([' ', '\n']).collect();
            // The last token may be cut by the end of the page.
            for token in &tokens[..tokens.len() - 1] {
                assert!(TOKENS.contains(token), "{token:?} in {text:?}");
            }
        }
    }

    #[test]
    fn another_key_gives_another_text_and_the_same_key_the_same() {
        assert_eq!(prose(1), prose(1));
        assert_ne!(prose(1), prose(2));
    }
}
