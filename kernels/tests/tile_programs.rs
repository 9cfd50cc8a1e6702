//! Every tile program against the interpreter of graphs, on the samples of its operation.

#[path = "common/programs.rs"]
mod programs;

mod common;

#[test]
fn samples_agree_with_the_interpreter() {
    let mut launches = 0;
    programs::each(|_, _, _, _| launches += 1);
    assert!(launches > 40, "{launches} launches");
}
