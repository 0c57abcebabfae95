//! Tests of page content.

use super::*;

fn content(command_line: &str) -> Content {
    Content::new(&Settings::parse(command_line).unwrap())
}

fn page(content: &Content, number: u32, version: u32) -> PageWords {
    let mut words = [u64::MAX; WORDS];
    content.whole(PageNumber(number), Version(version), &mut words);
    words
}

#[test]
fn a_mix_gives_each_kind_its_percentage() {
    let mix = "zero:40,text:20,random:20,dup:10,heap:10";
    let content = content(&format!("sterna.mix={mix} sterna.ws=0"));
    let mut counts = [0; 5];
    for number in 0..10_000 {
        let kind = content.kind(PageNumber(number), Version(0));
        counts[KINDS.iter().position(|&other| other == kind).unwrap()] += 1;
    }
    for (count, expected) in counts.into_iter().zip([4000_i32, 2000, 2000, 1000, 1000]) {
        assert!((count - expected).abs() < 300, "{counts:?}");
    }
}

#[test]
fn the_content_is_the_same_every_time_and_differs_by_seed_page_and_version() {
    let content_a = content("sterna.mix=text:40,random:40,heap:20 sterna.seed=1");
    let content_b = content("sterna.mix=text:40,random:40,heap:20 sterna.seed=2");
    for number in 0..20 {
        let first = page(&content_a, number, 3);
        assert_eq!(first, page(&content_a, number, 3));
        assert_ne!(first, page(&content_a, number, 4));
        assert_ne!(first, page(&content_a, number + 1, 3));
        assert_ne!(first, page(&content_b, number, 3));
    }
}

#[test]
fn the_working_set_is_of_its_own_kind_and_so_is_a_page_that_joins_it_later() {
    let content = content("sterna.mix=zero:100 sterna.ws=4K sterna.ws_content=random");
    assert_eq!(content.kind(PageNumber(0), Version(0)), Kind::Random);
    assert_eq!(content.kind(PageNumber(1), Version(0)), Kind::Zero);
    assert_eq!(content.kind(PageNumber(1), Version(1)), Kind::Random);
}

#[test]
fn duplicates_are_copies_of_few_pages() {
    let content = content("sterna.mix=dup:100");
    let mut seen: Vec<PageWords> = (0..1000).map(|number| page(&content, number, 0)).collect();
    seen.sort_unstable();
    seen.dedup();
    assert!((2..=TEMPLATES).contains(&seen.len()), "{}", seen.len());
}

#[test]
fn a_rewrite_of_the_page_before_gives_the_whole_page_of_the_version() {
    for write in ["page", "word", "word sterna.stride=4088"] {
        for kind in KINDS {
            let content = content(&format!("sterna.ws_content={kind} sterna.write={write}"));
            let mut rewritten = page(&content, 5, 0);
            for version in 1..4 {
                content.rewrite(PageNumber(5), Version(version), &mut rewritten);
                assert_eq!(rewritten, page(&content, 5, version), "{kind} {write}");
            }
        }
    }
}

#[test]
fn a_rewrite_of_a_word_changes_that_word_only() {
    let content = content("sterna.write=word sterna.stride=16");
    let (first, second) = (page(&content, 9, 1), page(&content, 9, 2));
    let changed = first.iter().zip(&second).filter(|(before, after)| before != after).count();
    assert_eq!(changed, 2);
}

#[test]
fn mixes_that_do_not_add_up_are_refused() {
    for text in ["", "zero", "zero:99", "zero:50,text:51", "prose:100", "zero:256", "zero:100,"] {
        assert_eq!(text.parse::<Mix>(), Err(BadMix), "{text:?}");
    }
}

#[test]
fn guests_differ_in_their_own_pages_only() {
    let of = |own_seed| content(&format!("sterna.own=0.25 sterna.own_seed={own_seed}"));
    let (one, two) = (of(1), of(2));
    let alike = (0..2000).filter(|number| page(&one, *number, 0) == page(&two, *number, 0)).count();
    assert!((1400..1600).contains(&alike), "{alike}");
}
