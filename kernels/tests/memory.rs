//! Arenas of real training graphs against their lower bound, and the time that planning takes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::llama::{Job, large, train};
use kfc_graph::DType;
use kfc_graph::cost::Rates;
use kfc_kernels::compile::{Backend, compile, frontier};
use std::time::Instant;

const MIB: f64 = 1024.0 * 1024.0;

fn job(teacher: bool) -> Job {
    Job { dtype: DType::Bf16, lora: true, teacher, batch: 1, seq: 4096 }
}

#[test]
fn arenas_are_close_to_their_lower_bound() {
    for layers in [2, 12, 32] {
        for (name, job) in
            [("lora", job(false)), ("lora + teacher", job(true)), ("full", Job { lora: false, ..job(false) })]
        {
            let graph = train(large(layers), job);
            let start = Instant::now();
            let plan = compile(&graph, &mut |_, _| ()).unwrap();
            let over = plan.arena_bytes as f64 / plan.live_bytes as f64 - 1.0;
            println!(
                "{layers:>2} layers, {name}: arena {:.0} MiB, {:.2} % above {:.0} MiB, {} steps, {:.2?}",
                plan.arena_bytes as f64 / MIB,
                100.0 * over,
                plan.live_bytes as f64 / MIB,
                plan.steps.len(),
                start.elapsed(),
            );
            assert!(over <= 0.03, "{layers} layers, {name}: {:.1} % above the lower bound", 100.0 * over);
        }
    }
}

#[test]
fn frontiers_are_found_in_seconds() {
    for layers in [12, 32] {
        let graph = train(large(layers), job(true));
        let start = Instant::now();
        let all = frontier(&graph, Backend::Cpu, &Rates::default().seconds_of()).unwrap();
        let took = start.elapsed();
        println!("{layers} layers: planned in {took:.2?}");
        for c in &all.choices {
            let over = c.arena_bytes as f64 / c.live_bytes as f64 - 1.0;
            println!(
                "{:8.0} MiB (+{:.2} %) {:8.2} s  {}",
                c.arena_bytes as f64 / MIB,
                100.0 * over,
                c.extra_seconds,
                c.name
            );
            assert!(over <= 0.03, "{}: {:.1} % above the lower bound", c.name, 100.0 * over);
        }
        let (none, least) = (&all.named[0], all.choices.last().unwrap());
        assert!(none.dropped.is_empty() && least.arena_bytes * 2 < none.arena_bytes);
        for n in &all.named {
            println!("   {}: {:.0} MiB {:.2} s", n.name, n.arena_bytes as f64 / MIB, n.extra_seconds);
            let chosen = all.within(n.arena_bytes).unwrap();
            assert!(
                chosen.arena_bytes <= n.arena_bytes
                    && chosen.extra_seconds <= n.extra_seconds.max(all.free_seconds)
            );
        }
        // A shared and busy machine gets some slack.
        assert!(took.as_secs() < 30, "{took:?}");
    }
}
