//! The time that the parts take. `cargo bench --manifest-path benches/parts/Cargo.toml --bench
//! times`.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tautline_parts::{SIZES, Work, count};

fn parts(criterion: &mut Criterion) {
    for size in SIZES {
        let mut group = criterion.benchmark_group("parts");
        group.throughput(Throughput::Elements(count(size) as u64));
        let mut work = Work::new(size, false);
        group.bench_function(BenchmarkId::new("heads of frames", size), |bench| {
            bench.iter(|| work.heads())
        });
        group.bench_function(BenchmarkId::new("messages to masked frames", size), |bench| {
            bench.iter(|| work.write())
        });
        group.bench_function(BenchmarkId::new("check of UTF-8", size), |bench| {
            bench.iter(|| work.check_text())
        });
        for (name, is_compressed) in
            [("bytes to messages", false), ("compressed bytes to messages", true)]
        {
            group.bench_function(BenchmarkId::new(name, size), |bench| {
                bench.iter_batched_ref(
                    || Work::new(size, is_compressed),
                    Work::read,
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

criterion_group!(benches, parts);
criterion_main!(benches);
