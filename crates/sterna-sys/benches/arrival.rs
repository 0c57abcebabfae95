//! What putting pages that have come into a guest's empty RAM costs: written into its file by the kernel, as the
//! receiver does after it has decoded them, or through a mapping, as a decoder would that decodes straight into it.
//!
//! The latter has the copy too, which such a decoder would not: `copy` is what that is at most. What is left of
//! `mapped` without it are the faults, in each of which the kernel makes a page and zeroes it first.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::os::fd::OwnedFd;
use sterna_page::{PAGE_SIZE, PageNumber, RamBlock, RamLayout};
use sterna_sys::memory::{Access, GuestMemory, HugePages, create_shared};

/// Pages that come together.
const RUN: usize = 64;
const RUNS: u64 = 256;
const SIZE: u64 = RUNS * (RUN * PAGE_SIZE) as u64;

fn block() -> (RamLayout, Vec<OwnedFd>) {
    let block = RamBlock { name: "ram".into(), size_bytes: SIZE, host_page_bytes: 4096 };
    let file = create_shared("bench", SIZE, HugePages::No).expect("memory can be had");
    (RamLayout::new(vec![block]).expect("one block"), vec![file])
}

fn fill(memory: &GuestMemory, pages: &[u8]) {
    for run in 0..RUNS {
        memory.write(PageNumber(run * RUN as u64), pages).expect("RAM of our own");
    }
}

fn arrival(criterion: &mut Criterion) {
    let pages = vec![7; RUN * PAGE_SIZE];
    let mut group = criterion.benchmark_group("arrival");
    group.throughput(Throughput::Bytes(SIZE)).sample_size(20);
    let (layout, file) = block();
    let written = GuestMemory::open(layout, file).expect("a file of its size");
    let (layout, file) = block();
    let mapped = GuestMemory::map(layout, file, Access::ReadWrite).expect("a file of its size");
    for (name, memory) in [("written", &written), ("mapped", &mapped)] {
        let empty = || memory.punch_all().expect("RAM of our own");
        group.bench_function(name, |bencher| {
            bencher.iter_batched(empty, |()| fill(memory, &pages), BatchSize::PerIteration);
        });
    }
    group.bench_function("copy", |bencher| {
        let mut there = vec![0; RUN * PAGE_SIZE];
        bencher.iter(|| {
            for _ in 0..RUNS {
                black_box(&mut there).copy_from_slice(black_box(&pages));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, arrival);
criterion_main!(benches);
