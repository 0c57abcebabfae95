//! Tests of reading and writing settings.

use std::num::NonZeroU8;

use super::*;

fn refused(word: &str) -> String {
    Settings::parse(word).unwrap_err().to_string()
}

#[test]
fn an_empty_command_line_means_the_defaults() {
    assert_eq!(Settings::parse("console=hvc0 quiet panic=-1\n"), Ok(Settings::default()));
}

#[test]
fn every_setting_that_is_written_is_read_back() {
    let settings = Settings {
        fill: Bytes::mebibytes(512),
        mix: "zero:40,text:30,random:20,dup:10".parse().unwrap(),
        working_set: Bytes::mebibytes(256),
        working_set_content: WorkingSetContent::Only(Kind::Random),
        rate: Rate(50_000_000),
        check: CheckRate::Limited(Rate::mebibytes_per_second(100)),
        locality: Share::new(0.9).unwrap(),
        order: Order::Sequential,
        write: WriteSize::Words(8),
        tick: Grid(NonZeroU8::new(10).unwrap()),
        seed: Seed(7),
        own: Share::new(0.25).unwrap(),
        own_seed: Seed(8),
        console: PathBuf::from("/dev/ttyS0"),
        address: "10.78.0.11/16".parse().unwrap(),
        disk: DiskUse::Direct,
        disk_rate: Rate(1),
    };
    assert_eq!(Settings::parse(&settings.to_string()), Ok(settings));
    let defaults = Settings::default();
    assert_eq!(Settings::parse(&defaults.to_string()), Ok(defaults));
}

#[test]
fn a_stride_counts_wherever_it_stands() {
    let settings = Settings::parse("sterna.stride=64 sterna.write=word").unwrap();
    assert_eq!(settings.write, WriteSize::Words(8));
    let settings = Settings::parse("sterna.stride=64").unwrap();
    assert_eq!(settings.write, WriteSize::Page);
}

#[test]
fn a_misspelt_setting_is_refused_by_name() {
    assert_eq!(refused("sterna.fil=1M"), "there is no setting sterna.fil");
}

#[test]
fn a_bad_value_is_refused_with_what_was_expected() {
    assert_eq!(
        refused("sterna.locality=1.5"),
        "sterna.locality=1.5: expected a number from 0 to 1"
    );
    for word in [
        "sterna.fill",
        "sterna.fill=1X",
        "sterna.mix=zero:40",
        "sterna.ws_content=prose",
        "sterna.rate=-1",
        "sterna.check=all",
        "sterna.locality=NaN",
        "sterna.order=random",
        "sterna.write=byte",
        "sterna.tick=0",
        "sterna.tick=256",
        "sterna.stride=0",
        "sterna.stride=12",
        "sterna.stride=4096",
        "sterna.seed=x",
        "sterna.console=hvc0",
        "sterna.ip=10.78.0.10",
        "sterna.ip=10.78.0.10/33",
        "sterna.disk=write",
    ] {
        assert!(refused(word).contains("expected"), "{word}");
    }
}

#[test]
fn sizes_that_contradict_each_other_are_refused() {
    assert!(refused("sterna.fill=1M sterna.ws=2M").contains("does not fit"));
    assert!(refused("sterna.fill=4095 sterna.ws=0").contains("less than a page"));
    assert!(refused("sterna.fill=17179869183G sterna.ws=0").contains("2^32"));
}

#[test]
fn a_share_takes_its_share_of_all_draws() {
    let half = Share::new(0.5).unwrap();
    assert!(half.takes(0) && half.takes(u32::MAX / 2) && !half.takes(u32::MAX / 2 + 1));
    assert!(!Share::new(0.0).unwrap().takes(0));
    assert!(Share::new(1.0).unwrap().takes(u32::MAX));
}
