#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "made-up pages and figures"
)]

use super::*;
use proptest::prelude::*;
use std::time::Duration;

/// An encoder with its decoder.
type Pair = (Box<dyn Encode>, Box<dyn Decode>);

fn pairs() -> Vec<(&'static str, Pair)> {
    let zstd = |strength| -> Pair { (Box::new(Zstd::new(strength)), Box::new(ZstdDecoder::new())) };
    vec![
        ("sparse", (Box::new(Sparse), Box::new(Sparse))),
        ("words", (Box::new(Words), Box::new(Words))),
        ("lz4", (Box::new(Lz4::default()), Box::new(Lz4Decoder))),
        ("zstd fast", zstd(Strength::Fast)),
        ("zstd strong", zstd(Strength::Strong)),
    ]
}

fn coded(encoder: &mut dyn Encode, pages: &[PageBytes]) -> Vec<u8> {
    let mut code = vec![0; code_bytes_max(pages.len())];
    let length = encoder.encode(pages, &mut code);
    code.truncate(length);
    code
}

/// Pages of every kind that a coder may see.
fn page() -> impl Strategy<Value = PageBytes> {
    let filled = |fill: fn(u64, usize) -> u32| {
        any::<u64>().prop_map(move |seed| {
            let mut page = [0; PAGE_SIZE];
            for (index, word) in page.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *word = fill(seed, index).to_le_bytes();
            }
            page
        })
    };
    fn noise(seed: u64, index: usize) -> u32 {
        let mixed = (seed ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
    }
    prop_oneof![
        Just([0; PAGE_SIZE]),
        Just([0xff; PAGE_SIZE]),
        filled(noise),
        filled(|seed, index| if noise(seed, index).is_multiple_of(20) {
            noise(seed, index)
        } else {
            0
        }),
        filled(|seed, index| (seed as u32 & !0xfff) | (noise(seed, index) & 0xfff)),
        filled(|seed, index| noise(seed, index % 31)),
        filled(|seed, index| noise(seed, index) & 0x0f0f_0f0f | 0x4040_4040),
        proptest::collection::vec(any::<u8>(), PAGE_SIZE)
            .prop_map(|bytes| bytes.try_into().expect("as many")),
    ]
}

fn runs() -> impl Strategy<Value = Vec<Vec<PageBytes>>> {
    proptest::collection::vec(proptest::collection::vec(page(), 1..5), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_coding_restores_every_page_bit_for_bit(runs in runs()) {
        for (name, (mut encoder, mut decoder)) in pairs() {
            for pages in &runs {
                let code = coded(&mut *encoder, pages);
                let most = pages.len() * (PAGE_SIZE + PAGE_SIZE / 128) + 32;
                prop_assert!(code.len() <= most, "{}: {}", name, code.len());
                // Whatever was there before.
                let mut restored = vec![[0xa5; PAGE_SIZE]; pages.len()];
                prop_assert_eq!(decoder.decode(&code, &mut restored), Ok(()), "{}", name);
                prop_assert!(&restored == pages, "{name}");
            }
        }
    }

    #[test]
    fn a_code_that_lies_is_an_error_or_some_pages(
        pages in proptest::collection::vec(page(), 1..4),
        cut in any::<prop::sample::Index>(),
        flip in any::<(prop::sample::Index, u8)>(),
        noise in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        for (index, (name, (mut encoder, _))) in pairs().into_iter().enumerate() {
            let code = coded(&mut *encoder, &pages);
            let mut restored = vec![[0; PAGE_SIZE]; pages.len()];
            let decode = |code: &[u8], restored: &mut [PageBytes]| {
                let (_, (_, mut decoder)) = pairs().remove(index);
                decoder.decode(code, restored)
            };
            let short = decode(&code[..cut.index(code.len())], &mut restored);
            prop_assert!(short.is_err(), "{name} took a code that was cut off");
            let fewer = decode(&code, &mut restored[1..]);
            prop_assert!(fewer.is_err(), "{name} took the code of more pages");
            let longer = [&code[..], &[0]].concat();
            // Zstandard cannot tell one byte more from the beginning of the next code.
            let told = decode(&longer, &mut restored).is_err() || name.starts_with("zstd");
            prop_assert!(told, "{name} took a longer code");
            let mut flipped = code.clone();
            flipped[flip.0.index(code.len())] ^= flip.1;
            let _ = decode(&flipped, &mut restored);
            let _ = decode(&noise, &mut restored);
        }
    }
}

#[test]
fn a_page_of_few_words_is_short() {
    let mut page = [0; PAGE_SIZE];
    page[40..44].copy_from_slice(&7u32.to_le_bytes());
    let length = |encoder: &mut dyn Encode, page: &PageBytes| coded(encoder, &[*page]).len();
    assert_eq!(length(&mut Sparse, &page), 2 + 2 + 6);
    // Tags, one place, one word of low bits: 7 is like the dictionary's 1.
    assert_eq!(length(&mut Words, &page), 2 + 256 + 1 + 4);
    let noise: PageBytes = std::array::from_fn(|index| {
        ((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8
    });
    assert_eq!(
        length(&mut Sparse, &noise),
        2 + PAGE_SIZE,
        "a page that is no shorter goes as it is"
    );
    assert!(length(&mut Words, &noise) <= 2 + PAGE_SIZE);
}

#[test]
fn a_word_in_two_places_is_no_code() {
    let mut code = vec![14, 0, 2, 0];
    code.extend([5, 0, 5, 0]);
    code.extend([1; 8]);
    let mut pages = [[0; PAGE_SIZE]];
    assert_eq!(Sparse.decode(&code, &mut pages), Err(CodeError::Malformed));
    code[6] = 6;
    assert_eq!(Sparse.decode(&code, &mut pages), Ok(()));
    code[6..8].copy_from_slice(&1024u16.to_le_bytes());
    assert_eq!(Sparse.decode(&code, &mut pages), Err(CodeError::Malformed), "no such word");
}

#[test]
fn one_byte_anywhere_makes_a_page_something() {
    let mut page = [0u8; PAGE_SIZE];
    assert_eq!(classify(&page), PageClass::Zero);
    for position in 0..PAGE_SIZE {
        page[position] = 1;
        assert_eq!(classify(&page), PageClass::Sparse, "byte {position}");
        page[position] = 0;
    }
}

#[test]
fn a_sample_tells_what_a_page_is() {
    let words = |word: fn(u32) -> u32| {
        let mut page = [0; PAGE_SIZE];
        for (index, bytes) in (0..).zip(page.as_chunks_mut::<4>().0) {
            *bytes = word(index).to_le_bytes();
        }
        page
    };
    fn noise(index: u32) -> u32 {
        let mixed = u64::from(index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ mixed >> 32).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
    }
    let sparse = |index| if index % 9 == 0 { noise(index) } else { 0 };
    assert_eq!(classify(&words(sparse)), PageClass::Sparse);
    assert_eq!(classify(&words(|index| 0x7fff_1000 + index % 97)), PageClass::Words);
    let letters = |index| noise(index) & 0x0f0f_0f0f | 0x6060_6060;
    assert_eq!(classify(&words(letters)), PageClass::Bytes);
    assert_eq!(classify(&words(noise)), PageClass::Noise);
}

const RUN: usize = 64;

/// A choice that knows of pages of this class what each coder does: bytes a second, and the ratio.
fn knowing(class: PageClass, measures: &[(Coder, f64, f64)]) -> Choice {
    let mut choice = Choice::default();
    for (coder, speed, ratio) in measures {
        let bytes = (RUN * PAGE_SIZE) as f64;
        let took = Duration::from_secs_f64(bytes / speed);
        let code_bytes = (bytes * ratio) as usize;
        choice.tried(class, *coder, Tried { pages: RUN, code_bytes, took });
    }
    choice
}

const TEXT: [(Coder, f64, f64); 3] =
    [(Coder::Lz4, 600e6, 0.5), (Coder::ZstdFast, 300e6, 0.35), (Coder::ZstdStrong, 60e6, 0.3)];

/// A link that takes so many bytes a second, on an idle host.
fn pace(link: f64) -> Pace {
    Pace { sent: 2e9, slowed: 1.0, link }
}

#[test]
fn the_slower_the_link_the_stronger_the_coder() {
    let mut choice = knowing(PageClass::Bytes, &TEXT);
    let mut at = |link: f64| choice.next(PageClass::Bytes, RUN, pace(link)).0;
    assert_eq!(at(12e6), Some(Coder::ZstdStrong));
    assert_eq!(at(60e6), Some(Coder::ZstdFast));
    assert_eq!(at(250e6), Some(Coder::Lz4));
    assert_eq!(at(1e9), None, "coding at 600 MB/s would slow it down");
    assert_eq!(at(f64::INFINITY), None);
}

#[test]
fn a_coder_that_has_to_wait_for_a_processor_is_a_slower_one() {
    let mut choice = knowing(PageClass::Bytes, &TEXT);
    let mut at = |slowed| choice.next(PageClass::Bytes, RUN, Pace { slowed, ..pace(60e6) }).0;
    assert_eq!(at(1.0), Some(Coder::ZstdFast));
    // 7 ns a byte, where LZ4 takes the link 8.3; then 21 and 12.
    assert_eq!(at(2.0), Some(Coder::ZstdFast));
    assert_eq!(at(6.0), Some(Coder::Lz4));
    // What is coded goes out more slowly than what is not.
    assert_eq!(at(40.0), None);
}

#[test]
fn where_no_link_is_the_limit_coding_must_spare_more() {
    let at = |ratio, link| {
        let mut choice = knowing(PageClass::Bytes, &[(Coder::Lz4, 4e9, ratio)]);
        for coder in [Coder::ZstdFast, Coder::ZstdStrong] {
            let took = Duration::from_secs(1);
            choice.tried(PageClass::Bytes, coder, Tried { pages: 1, code_bytes: 4096, took });
        }
        choice.next(PageClass::Bytes, RUN, pace(link)).0
    };
    // 0.45 of 0.5 ns, and of 0.53.
    assert_eq!(at(0.4, f64::INFINITY), None);
    assert_eq!(at(0.4, 1.9e9), Some(Coder::Lz4));
    // 0.3 of 0.5.
    assert_eq!(at(0.1, f64::INFINITY), Some(Coder::Lz4));
}

#[test]
fn what_is_not_known_is_tried_on_few_pages_and_then_seldom() {
    let mut choice = Choice::default();
    // A byte of a page takes 2 ns as it is, and 1.5 to code in vain.
    let link = pace(500e6);
    assert!(choice.may_code(link));
    let mut tried = Vec::new();
    let took = Duration::from_micros(100);
    for _ in 0..3 {
        let (coder, pages) = choice.next(PageClass::Bytes, 256, link);
        let coder = coder.expect("something to try");
        assert_eq!(pages, 16);
        tried.push(coder);
        choice.tried(PageClass::Bytes, coder, Tried { pages, code_bytes: pages * PAGE_SIZE, took });
    }
    assert_eq!(tried, PageClass::Bytes.coders());
    assert_eq!(choice.next(PageClass::Bytes, 256, link), (None, 256));
    // 0.3 ms of tries are a fiftieth of 15 ms, and 48 pages a sixteenth of 768.
    for _ in 0..9 {
        choice.spent(Duration::from_millis(1));
        assert_eq!(choice.next(PageClass::Bytes, 256, link), (None, 256));
    }
    choice.spent(Duration::from_millis(5));
    assert_eq!(choice.next(PageClass::Bytes, 256, link).0, None);
    choice.spent(Duration::from_millis(2));
    assert_eq!(choice.next(PageClass::Bytes, 256, link).1, 16, "time for another try");
}

#[test]
fn no_coder_is_tried_that_is_slower_than_one_that_takes_too_long() {
    let mut choice = Choice::default();
    let mut tried = std::collections::BTreeSet::new();
    let mut send = |choice: &mut Choice, link: f64, rounds: usize| {
        for _ in 0..rounds {
            let (coder, pages) = choice.next(PageClass::Bytes, 64, pace(link));
            let Some(coder) = coder else { continue };
            tried.insert(format!("{coder:?}"));
            // LZ4 codes 300 MB of pages in a second, where a page as it is needs a second for each 1000 MB.
            let took = Duration::from_secs_f64(pages as f64 * 4096.0 / 300e6);
            choice.tried(PageClass::Bytes, coder, Tried { pages, code_bytes: pages * 2048, took });
            choice.spent(took);
        }
        tried.len()
    };
    assert_eq!(send(&mut choice, f64::INFINITY, 2000), 1, "only the quickest");
    // A link that is the limit is worth all of them.
    assert_eq!(send(&mut choice, 10e6, 10), 3);
}

#[test]
fn pages_need_not_be_looked_at_where_no_coding_pays() {
    let mut choice = Choice::default();
    for class in PageClass::CODED {
        for coder in class.coders() {
            let took = Duration::from_micros(500);
            choice.tried(class, *coder, Tried { pages: RUN, code_bytes: RUN * 2048, took });
        }
    }
    // Coding at 524 MB/s.
    assert!(!choice.may_code(pace(1e9)));
    assert!(choice.may_code(pace(100e6)));
    assert_eq!(choice.next(PageClass::Zero, 5, pace(1e6)), (None, 5));
}

#[test]
fn pages_are_looked_at_only_where_that_spares_more_than_it_takes() {
    // Of a sparse page half a nanosecond a byte is spared: 2 µs.
    let sparse = [(Coder::Sparse, 4e9, 0.1), (Coder::Words, 1e9, 0.5), (Coder::Lz4, 600e6, 0.5)];
    let unlimited = Pace { sent: 1e9, ..pace(f64::INFINITY) };
    for (of_a_hundred, pays) in [(2, false), (90, true)] {
        let mut choice = knowing(PageClass::Sparse, &sparse);
        for coder in PageClass::Noise.coders() {
            let took = Duration::from_millis(1);
            choice.tried(PageClass::Noise, *coder, Tried { pages: 1, code_bytes: 4096, took });
        }
        for number in 0..100 {
            let class = if number < of_a_hundred { PageClass::Sparse } else { PageClass::Noise };
            choice.next(class, RUN, unlimited);
            choice.looked(std::iter::repeat_n(class, RUN), Duration::from_micros(RUN as u64));
        }
        assert_eq!(choice.may_code(unlimited), pays, "{of_a_hundred} of a hundred");
        assert!(choice.may_code(pace(10e6)), "on a slow link");
    }
}

#[test]
fn a_coder_that_did_nothing_for_the_first_pages_is_found_when_others_come() {
    let mut choice = Choice::default();
    let slow = pace(30e6);
    let mut coded_from = None;
    for number in 0..200 {
        let (coder, pages) = choice.next(PageClass::Bytes, RUN, slow);
        let is_try = pages < RUN;
        if let Some(coder) = coder {
            // What is compressed already, then text.
            let code_bytes = pages * PAGE_SIZE / if number < 5 { 1 } else { 3 };
            let took = Duration::from_micros(pages as u64 * 10);
            choice.tried(PageClass::Bytes, coder, Tried { pages, code_bytes, took });
            if !is_try {
                coded_from.get_or_insert(number);
            }
        }
        // A MiB takes this link 33 ms.
        choice.spent(Duration::from_millis(8));
    }
    // Some 700 pages later.
    assert!(coded_from.is_some_and(|number| number < 30), "{coded_from:?}");
}

#[test]
fn nobody_waits_for_classes_that_a_guest_does_not_have() {
    let mut choice = knowing(PageClass::Bytes, &TEXT);
    let unlimited = pace(f64::INFINITY);
    assert!(choice.may_code(unlimited), "others may come");
    for _ in 0..4096 / RUN {
        assert_eq!(choice.next(PageClass::Bytes, RUN, unlimited).0, None);
    }
    assert!(!choice.may_code(unlimited));
    choice.next(PageClass::Sparse, 1, unlimited);
    assert!(choice.may_code(unlimited), "one has come");
}
