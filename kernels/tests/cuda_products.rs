//! Products cut in every way, their CUDA C++ run on a CPU: all give the same bits, and what is left out is seen.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/elements.rs"]
mod elements;
#[path = "common/fused_cases.rs"]
mod fused_cases;
#[path = "common/host.rs"]
mod host;

use host::{Case, Host, Kernel, differences, has_compiler};
use kfc_graph::{Attrs, Composite, DType, Op, Prim, SampleInput, TensorType};
use kfc_kernels::cuda::Arch;
use kfc_kernels::tile::cuda::{Source, TensorMap, print};
use kfc_kernels::tile::programs::{Arg, Sizes, emit, emit_tiled};
use kfc_kernels::tile::tiling::{Shape, candidates};
use kfc_kernels::tile::{Tiling, Tilings, interp};
use kfc_ops::samples::fill;

/// A depth with which rows are multiples of 16 bytes, and one with which they are not.
const EVEN: usize = 200;
const ODD: usize = 204;

/// `y = x·wᵀ + bias` of several tiles and rounds, of depth `k`, cut in these ways: kernels and a launch of each.
fn products(x: DType, k: usize, cuts: &[Tiling], arch: Arch) -> (Vec<Kernel>, Vec<Case>) {
    let (m, n) = (80, 160);
    let types = [[m, k].as_slice(), &[n, k], &[n]].map(|dims| TensorType::new(x, dims));
    let def = kfc_ops::registry().get("linear").unwrap();
    let op = Op::Composite(Composite { def, attrs: Attrs::new().with("bias", true) });
    let shape = Shape { kernel: "linear".into(), m, n, k, parts: 1, elem: x.into() };
    cut_ways(&op, &types, &shape, cuts, arch)
}

/// A product cut in these ways: kernels and a launch of each.
fn cut_ways(
    op: &Op,
    types: &[TensorType],
    shape: &Shape,
    cuts: &[Tiling],
    arch: Arch,
) -> (Vec<Kernel>, Vec<Case>) {
    let content = |t: &TensorType| match t.dtype {
        DType::I32 => SampleInput::Integers(0, 9),
        _ => SampleInput::Uniform(-1.0, 1.0),
    };
    let data: Vec<Vec<f64>> =
        types.iter().enumerate().map(|(i, t)| fill(t, &content(t), i as u64 + 1)).collect();
    let (mut kernels, mut cases) = (Vec::new(), Vec::new());
    for (i, cut) in cuts.iter().enumerate() {
        let mut tilings = Tilings::new();
        tilings.choose(shape.clone(), *cut);
        let out = op.infer(types).unwrap();
        let emitted = emit_tiled(op, types, &out, &Sizes::default(), &tilings).unwrap();
        let launch = emitted.launches.into_iter().next().unwrap();
        let mut p = launch.program;
        assert_eq!(p.tiled.as_ref().map(|t| (&t.shape, t.tiling)), Some((shape, *cut)));
        p.name = format!("{}_{i}", shape.kernel);
        let of = |arg: &Arg| match *arg {
            Arg::Input(i) => data[i].clone(),
            Arg::Output(j) => vec![0.0; out[j].elements()],
            Arg::Work(_) => panic!("a product has no workspace"),
        };
        let before: Vec<Vec<f64>> = launch.args.iter().map(of).collect();
        let mut after = before.clone();
        interp::run(&p, &mut after).unwrap();
        let source = print(&p, arch).unwrap();
        assert_eq!(source.stages, cut.stages.min(shape.k.div_ceil(cut.k)));
        kernels.push(Kernel { program: p, source, archs: vec![arch] });
        cases.push(Case { label: format!("{:?} {cut:?}", shape.elem), kernel: i, before, after });
    }
    (kernels, cases)
}

#[test]
fn every_tiling_gives_the_same_bits() {
    if !has_compiler() {
        return;
    }
    let archs = [(DType::F32, Arch::Sm80), (DType::Bf16, Arch::Sm80), (DType::Bf16, Arch::Sm90a)];
    for (x, arch) in archs {
        let shape = Shape { kernel: "linear".into(), m: 80, n: 160, k: 200, parts: 1, elem: x.into() };
        let mut all = candidates(&shape, arch);
        if arch == Arch::Sm90a {
            // Its built-in tiling has too few rows for instructions of four warps: those that have enough.
            let tall = Shape { m: 1 << 20, ..shape };
            all = candidates(&tall, arch).into_iter().filter(|t| t.m <= 128 && t.n <= 256).collect();
        }
        let mut cuts: Vec<Tiling> = all.iter().step_by(all.len().div_ceil(12)).copied().collect();
        cuts.extend((2..=5).map(|stages| Tiling { stages, ..all[0] }));
        cuts.push(Tiling { stages: 1, ..all[0] });
        let (kernels, cases) = products(x, EVEN, &cuts, arch);
        // All but the one without stages are filled by the hardware.
        let copied = kernels.iter().filter(|k| !k.source.maps.is_empty()).count();
        assert_eq!(copied, if arch == Arch::Sm90a { cuts.len() - 1 } else { 0 });
        let host = Host::new(&format!("cuda-tilings-{x:?}-{arch}"), &kernels);
        host.run_cut(&kernels, &cases, &|_| true);
    }
}

/// A residual, the gated activation of two layers, and rotated heads: of 16-bit tiles on Hopper, the hardware copies what both
/// products read.
#[test]
fn fused_products_give_the_same_bits_in_every_tiling() {
    if !has_compiler() {
        return;
    }
    let layer = fused_cases::Layer { tokens: 150, inputs: 200, outputs: 160, rank: 16 };
    for (x, arch) in [(DType::F32, Arch::Sm80), (DType::Bf16, Arch::Sm80), (DType::Bf16, Arch::Sm90a)] {
        let all = [fused_cases::pointwise(x, layer), fused_cases::pairs(x, layer, 64)].concat();
        let (mut count, mut copied) = (0, 0);
        for node in
            all.iter().filter(|n| !n.label.contains("lora") && n.op.infer(&n.types).unwrap().len() == 1)
        {
            let emitted = emit(&node.op, &node.types, &node.op.infer(&node.types).unwrap()).unwrap();
            let shape = emitted.launches[0].program.tiled.clone().unwrap().shape;
            let mut cuts = candidates(&shape, arch);
            if arch == Arch::Sm90a {
                let tall = Shape { m: 1 << 20, ..shape.clone() };
                cuts = candidates(&tall, arch).into_iter().filter(|t| t.m <= 128 && t.stages > 1).collect();
            }
            let cuts: Vec<Tiling> = cuts.iter().step_by(cuts.len().div_ceil(4)).copied().collect();
            let (kernels, cases) = cut_ways(&node.op, &node.types, &shape, &cuts, arch);
            count += kernels.len();
            copied += kernels.iter().filter(|k| !k.source.maps.is_empty()).count();
            let host = Host::new(&format!("cuda-{}-{arch}", node.label), &kernels);
            host.run_cut(&kernels, &cases, &|_| true);
        }
        assert!(count > 8, "{count}");
        assert_eq!(copied, if arch == Arch::Sm90a { count } else { 0 });
    }
}

#[test]
fn groups_of_four_warps_multiply_tiles_either_way_round() {
    if !has_compiler() {
        return;
    }
    let cut = |m, n, k, warps, stages| Tiling { m, n, k, warps, stages };
    // Rows of 128, 64 and 32 bytes; groups over rows, over columns, and one that does what another one does.
    let cuts = [
        cut(128, 64, 64, 8, 3),
        cut(64, 64, 32, 8, 2),
        cut(128, 32, 16, 4, 2),
        cut(64, 16, 32, 8, 2),
        cut(64, 256, 32, 4, 3),
    ];
    let (m, n, k) = (136, 72, 104);
    // Rows of several matrices that are masked are not copied in boxes.
    for (x, batch) in [(DType::Bf16, 1), (DType::F16, 2)] {
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
            let pair = |is_turned: bool, r, c| {
                TensorType::new(x, if is_turned { [batch, c, r] } else { [batch, r, c] })
            };
            let types = [pair(ta, m, k), pair(tb, k, n)];
            let op = Op::Prim(Prim::MatMul { ta, tb, out: DType::F32 });
            let shape = Shape { kernel: "matmul".into(), m, n, k, parts: 1, elem: x.into() };
            let (kernels, cases) = cut_ways(&op, &types, &shape, &cuts, Arch::Sm90a);
            assert!(kernels.iter().all(|k| k.is_hopper() && k.source.maps.is_empty() == (batch > 1)));
            let host = Host::new(&format!("cuda-turned-{x:?}-{ta}-{tb}"), &kernels);
            host.run_cut(&kernels, &cases, &|_| true);
        }
    }
}

/// A change of a source that makes it wrong.
type Change = Box<dyn Fn(&mut Source)>;

/// This text in place of that.
fn text(from: impl Into<String>, to: impl Into<String>) -> Change {
    let (from, to) = (from.into(), to.into());
    Box::new(move |source| {
        assert!(source.text.contains(&from), "{from}\n{}", source.text);
        source.text = source.text.replace(&from, &to);
    })
}

/// Whether each of these changes of a source makes a product of depth `k` go wrong, and the source as it is does not.
fn is_seen(name: &str, k: usize, arch: Arch, cut: Tiling, changes: &[Change]) {
    let (mut kernels, cases) = products(DType::Bf16, k, &vec![cut; changes.len() + 1], arch);
    for (k, change) in kernels[1..].iter_mut().zip(changes) {
        change(&mut k.source);
    }
    let host = Host::new(name, &kernels);
    for (i, case) in cases.iter().enumerate() {
        let runs = host.run(&kernels, std::slice::from_ref(case));
        let is_right = runs.into_iter().all(|(_, results)| {
            results.is_ok_and(|r| differences(&kernels, std::slice::from_ref(case), &r).is_empty())
        });
        assert_eq!(is_right, i == 0, "change {i}");
    }
}

/// Fills the slot that a kernel reads instead of another one.
fn same_slot(k: usize, cut: Tiling, arch: Arch) -> Change {
    let source = products(DType::Bf16, k, &[cut], arch).0.remove(0).source.text;
    let start = source.find("int slot").unwrap() + 4;
    let slot = source[start..].split(' ').next().unwrap().to_string();
    text(format!("{slot} == 0 ? 2 : {slot} - 1;\n"), format!("{slot};\n"))
}

#[test]
fn a_wait_or_barrier_that_is_missing_is_seen() {
    if !has_compiler() {
        return;
    }
    let cut = Tiling { m: 64, n: 64, k: 32, warps: 4, stages: 3 };
    let changes = [
        text("kfc_copy_wait_but<1>();", "kfc_copy_wait_but<2>();"),
        text("kfc_copy_wait_but<1>();\n        __syncthreads();", "kfc_copy_wait_but<1>();"),
        // The slot that is read is filled, before all have read it.
        same_slot(EVEN, cut, Arch::Sm80),
    ];
    is_seen("cuda-missing", EVEN, Arch::Sm80, cut, &changes);
}

#[test]
fn what_is_wrong_with_products_of_four_warps_is_seen() {
    if !has_compiler() {
        return;
    }
    let cut = Tiling { m: 128, n: 64, k: 64, warps: 8, stages: 3 };
    let changes = [
        text("kfc_copy_wait_but<1>();", "kfc_copy_wait_but<2>();"),
        text("kfc_fence_shared();\n        __syncthreads();", "kfc_fence_shared();"),
        text("kfc_fence_shared();", ""),
        text("kfc_wgmma_wait<32>(v", "kfc_keep<32>(v"),
        // Rows swizzled in another way than the descriptors say, and descriptors that say so.
        text("kfc_swizzled<128, 128>", "kfc_swizzled<64, 128>"),
        text("true, 128, 128, true, 128, 64>", "true, 128, 128, true, 64, 64>"),
        text("true, 128, 128, true, 128, 64>", "true, 128, 128, false, 128, 64>"),
        same_slot(ODD, cut, Arch::Sm90a),
    ];
    is_seen("cuda-groups", ODD, Arch::Sm90a, cut, &changes);
}

#[test]
fn what_is_wrong_with_copies_of_boxes_is_seen() {
    if !has_compiler() {
        return;
    }
    let cut = Tiling { m: 128, n: 64, k: 32, warps: 8, stages: 3 };
    let (kernels, _) = products(DType::Bf16, EVEN, &[cut], Arch::Sm90a);
    let source = &kernels[0].source;
    assert_eq!((source.maps.len(), source.threads), (2, 288));
    let start = source.text.find("int slot").unwrap() + 8;
    // The loop's number, behind the names of what is its own.
    let n = source.text[start..].split(' ').next().unwrap();
    let map = |f: fn(&mut TensorMap)| -> Change { Box::new(move |s| f(&mut s.maps[0])) };
    let (full, free, slot) = (format!("full{n}"), format!("free{n}"), format!("slot{n}"));
    let before = format!("{slot} == 0 ? 2 : {slot} - 1");
    let changes = [
        // Parities of the wrong phase: of the warp that copies, then of those that multiply.
        text(format!("parity{n} = 1;"), format!("parity{n} = 0;")),
        text(format!("parity{n} = 0;"), format!("parity{n} = 1;")),
        text(format!("if ({slot} == 2) parity{n} ^= 1;"), ""),
        // No bytes are waited for, and too few.
        text(
            format!("kfc_arrive_expecting({full} + {slot}, 12288)"),
            format!("kfc_arrive_expecting({full} + {slot}, 0)"),
        ),
        text(", 12288)", ", 8192)"),
        // Nobody waits until a slot is free, or full.
        text(format!("kfc_await({free} + {slot}, parity{n});"), ""),
        text(format!("kfc_await({full} + {slot}, parity{n});"), ""),
        // Slots are free while their products are under way, or are never freed.
        text("kfc_wgmma_wait_but<1>();", ""),
        text(before.clone(), slot.clone()),
        text(format!("kfc_arrive({free} + ({before}));"), ";"),
        // Fewer warps free a slot than read it.
        text(format!("kfc_make_barrier({free} + k, 8)"), format!("kfc_make_barrier({free} + k, 1)")),
        // Sums are read before they are there.
        text("kfc_wgmma_wait<32>(v", "kfc_keep<32>(v"),
        // Barriers that others know nothing of.
        text("kfc_announce_barriers();", ""),
        text("    __syncthreads();\n", ""),
        // Another matrix, another tile, another swizzle.
        map(|m| m.pitch += 16),
        map(|m| m.extents[0] -= 8),
        map(|m| m.tile[1] /= 2),
        map(|m| m.swizzle = 128),
        text("&map1", "&map0"),
    ];
    is_seen("cuda-boxes", EVEN, Arch::Sm90a, cut, &changes);
}

#[test]
fn rows_that_hardware_cannot_copy_are_copied_by_threads() {
    let cut = Tiling { m: 128, n: 64, k: 64, warps: 8, stages: 3 };
    for (k, maps) in [(EVEN, 2), (ODD, 0)] {
        let (kernels, _) = products(DType::Bf16, k, &[cut], Arch::Sm90a);
        let source = &kernels[0].source;
        assert_eq!((source.maps.len(), source.threads), (maps, if maps > 0 { 288 } else { 256 }));
        assert_eq!(source.text.contains("kfc_copy_wait"), maps == 0);
    }
    let (kernels, _) = products(DType::Bf16, EVEN, &[cut], Arch::Sm100a);
    assert!(kernels[0].source.maps.is_empty());
}
