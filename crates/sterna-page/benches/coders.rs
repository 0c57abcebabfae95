//! What each coder does for pages of each class: bytes of pages a second, and how many bytes of code.
//!
//! Next to it the speed of link from which a coder would slow a stream down: c of the rule in
//! `sterna_page::coding::Choice`, so long as the processor keeps up with the rest.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Instant;
use sterna_page::PAGE_SIZE;
use sterna_page::coding::{
    Coder, Decoders, Encoders, PageBytes, PageClass, classify, code_bytes_max,
};
use sterna_page::sent::ContentHasher;

/// Pages of a run.
const RUN: u32 = 64;

/// Runs, different from each other.
const RUNS: u32 = 32;

fn noise(index: u32) -> u32 {
    let mixed = u64::from(index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    u32::try_from(mixed >> 32).unwrap_or_default()
}

/// A word of a page of this class.
fn word(class: PageClass, index: u32) -> u32 {
    match class {
        PageClass::Zero => 0,
        PageClass::Sparse if index.is_multiple_of(11) => noise(index),
        PageClass::Sparse => 0,
        // Pointers into some regions, each with a counter beside it.
        PageClass::Words if index.is_multiple_of(2) => {
            0x7f00_0000 | ((noise(index) % 5) << 16) | (index % 900)
        }
        PageClass::Words => index % 16,
        // Letters, half of them in words of a vocabulary.
        PageClass::Bytes if noise(index / 4).is_multiple_of(2) => {
            (noise(noise(index / 4) % 300 + index % 4) & 0x1f1f_1f1f) | 0x6060_6060
        }
        PageClass::Bytes => (noise(index) & 0x0f0f_0f0f) | 0x6060_6060,
        PageClass::Noise => noise(index),
    }
}

fn runs(class: PageClass) -> Vec<Vec<PageBytes>> {
    let page = |number: u32| {
        let mut page = [0; PAGE_SIZE];
        for (index, bytes) in (0..).zip(page.as_chunks_mut::<4>().0) {
            *bytes = word(class, number * 1024 + index).to_le_bytes();
        }
        assert_eq!(classify(&page), class, "page {number}");
        page
    };
    (0..RUNS).map(|run| (run * RUN..(run + 1) * RUN).map(page).collect()).collect()
}

fn coders(criterion: &mut Criterion) {
    for class in PageClass::CODED {
        let runs = runs(class);
        let bytes = u64::from(RUN * RUNS) * PAGE_SIZE as u64;
        let mut group = criterion.benchmark_group(format!("{class:?}"));
        group.throughput(Throughput::Bytes(bytes)).sample_size(10);
        group.bench_function("classify", |bencher| {
            bencher.iter(|| {
                runs.iter().flatten().for_each(|page| {
                    black_box(classify(page));
                })
            });
        });
        group.bench_function("hash", |bencher| {
            let hasher = ContentHasher::new([1; 32]);
            bencher.iter(|| {
                runs.iter().flatten().for_each(|page| {
                    black_box(hasher.hash(page));
                })
            });
        });
        for coder in Coder::ALL {
            let mut code = vec![0; code_bytes_max(RUN as usize)];
            let (mut encoders, mut codes) = (Encoders::default(), Vec::new());
            let began = Instant::now();
            for run in &runs {
                let length = encoders.encode(coder, run, &mut code);
                codes.push(code[..length].to_vec());
            }
            let speed = bytes as f64 / began.elapsed().as_secs_f64();
            let length: usize = codes.iter().map(Vec::len).sum();
            let ratio = length as f64 / bytes as f64;
            println!(
                "{class:?} by {coder:?}: {ratio:.3} of its bytes, once at {:.0} MB/s; pays up to a link of \
                 {:.0} MB/s a stream",
                speed / 1e6,
                if ratio < 1.0 { speed / 1e6 } else { 0.0 },
            );
            group.bench_function(BenchmarkId::new("encode", format!("{coder:?}")), |bencher| {
                let mut encoders = Encoders::default();
                bencher.iter(|| {
                    for run in &runs {
                        black_box(encoders.encode(coder, run, &mut code));
                    }
                });
            });
            group.bench_function(BenchmarkId::new("decode", format!("{coder:?}")), |bencher| {
                let mut pages = vec![[0; PAGE_SIZE]; RUN as usize];
                bencher.iter(|| {
                    // A connection of its own each time, as codes follow one another.
                    let mut decoders = Decoders::default();
                    for code in &codes {
                        decoders.decode(coder, code, &mut pages).expect("it was just made");
                    }
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, coders);
criterion_main!(benches);
