//! Text file tests. Each file of `tests/kir` holds `# test COMMAND..`, a graph, a line `----` and what must come out.
//! `KFC_BLESS=1` writes the results into the files. Where passes make a new graph, it is also run against the old one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{check_plan, defs, facts, random_inputs};
use kfc_graph::interp::run;
use kfc_graph::memory::{Place, plan};
use kfc_graph::passes::fuse_products::{self, Fuses};
use kfc_graph::passes::{canonicalise, cse, dce, decompose, fuse_head, fuse_pointwise, optimise, recompute};
use kfc_graph::schedule::schedule;
use kfc_graph::text::{parse, print};
use kfc_graph::verify::verify;
use kfc_graph::{Composite, Fused, Graph, NodeId, Result};
use std::fs;
use std::path::Path;

#[test]
fn files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kir");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "kir"));
    files.sort();
    assert!(files.len() >= 10, "{} test files in {}", files.len(), folder.display());
    let bless = std::env::var_os("KFC_BLESS").is_some();
    let mut wrong = vec![];
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let (source, expected) = text.split_once("----\n").unwrap_or((&text, ""));
        let found = outcome(source);
        if bless {
            fs::write(&file, format!("{source}----\n{found}")).unwrap();
        } else if found != expected {
            wrong.push(format!("{}:\n{found}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "run with KFC_BLESS=1 to accept\n{}", wrong.join("\n"));
}

/// What the commands of a file make of its graph; errors are an outcome too.
fn outcome(source: &str) -> String {
    let commands = source.lines().find_map(|l| l.strip_prefix("# test ")).expect("a line `# test COMMAND..`");
    match execute(source, commands) {
        Ok(text) => text,
        Err(e) => format!("{e}\n"),
    }
}

fn execute(source: &str, commands: &str) -> Result<String> {
    let original = parse(source, &defs())?;
    verify(&original)?;
    let mut graph = original.clone();
    for command in commands.split_whitespace() {
        graph = match command {
            "schedule" => return Ok(show_schedule(&graph)),
            "memory" => return Ok(show_memory(&graph)),
            "verify" => return Ok("valid\n".into()),
            "canonicalise" => canonicalise::run(&graph)?,
            "cse" => cse::run(&graph),
            "dce" => dce::run(&graph),
            "fuse_head" => fuse_head::run(&graph, &defs())?,
            "fuse_pointwise" => fuse_pointwise::run(&graph)?,
            "fuse_products" => fuse_products::run(&graph, &Gates)?,
            "decompose" => decompose::run(&graph, &|c, _| c.def.name() == "accumulate")?,
            "recompute" => recompute_every_layer(&graph),
            "optimise" => optimise(&graph, &defs(), &|_, _| false, &mut |_, _| ())?,
            other => panic!("unknown command {other}"),
        };
        verify(&graph)?;
    }
    same_results(&original, &graph);
    Ok(print(&graph))
}

/// A backend for which gates are products, and `nested` and pointwise operations can be done to one of them; `nested` to two.
struct Gates;

impl Fuses for Gates {
    fn is_product(&self, c: &Composite) -> bool {
        c.def.name() == "gate"
    }
    fn is_epilogue(&self, c: &Composite) -> bool {
        c.def.name() == "nested"
    }
    fn claims(&self, f: &Fused) -> bool {
        let count = |name: &str| f.body().nodes().iter().filter(|n| n.op.name() == name).count();
        count("gate") == 1 || count("nested") == 1
    }
}

fn recompute_every_layer(graph: &Graph) -> Graph {
    let cut = recompute::Cut::new(graph);
    recompute::run(graph, &cut, &recompute::dropped(graph, &cut, &recompute::Policy::EveryLayer))
}

fn line(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    let outputs: Vec<String> = node.outputs.iter().map(|v| format!("%{}", v.0)).collect();
    format!("{} = {}", outputs.join(", "), node.op.name())
}

fn show_schedule(graph: &Graph) -> String {
    schedule(graph).into_iter().map(|id| line(graph, id) + "\n").collect()
}

/// One line a step: the places of its results and its workspace.
fn show_memory(graph: &Graph) -> String {
    let order = schedule(graph);
    let plan = plan(graph, &order, &facts);
    check_plan(graph, &order, &plan);
    let mut out = format!("arena {} bytes, at least {}\n", plan.arena_bytes, plan.lower_bound);
    for id in order {
        out += &line(graph, id);
        for v in &graph.node(id).outputs {
            out += &match plan.places[v.index()] {
                Place::Input(i) => format!(" in \"{}\"", graph.inputs()[i as usize].name),
                Place::Arena(s) => format!(" at {}+{}", s.offset, s.bytes),
            };
        }
        if let Some(s) = plan.workspaces[id.index()] {
            out += &format!(" workspace {}+{}", s.offset, s.bytes);
        }
        out += "\n";
    }
    for i in plan.copied_updates {
        out += &format!("copy output \"{}\"\n", graph.outputs()[i].name);
    }
    out
}

fn same_results(a: &Graph, b: &Graph) {
    let inputs = random_inputs(a, 11);
    let (a, b) = (run(a, &inputs).unwrap(), run(b, &inputs).unwrap());
    assert_eq!(a, b, "the passes changed the results");
}
