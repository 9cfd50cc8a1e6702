//! Round trips and messages.

use super::*;
use crate::verify::verify;
use crate::{Graph, Registry};

fn read(text: &str) -> crate::Result<Graph> {
    parse(text, &Registry::default())
}

const EVERY_PRIM: &str = r#"graph "every prim" {
  %0: i32[2] = data "seed"
  %1: f32[4,3] = weight "table \"x\" \\ \u{7}é"
  %2: i32[2,2] = data "ids"
  %3: f32[2,2,3] = gather(%1, %2) @forward "embed"
  %4: f32[2,2,3] = random(%0) {stream=4294967295} @forward "embed"
  %5: f32[2,2,3] = const() {value=-inf} @forward ""
  %6: f32[2,2,3] = max(%3, %5) @forward ""
  %7: i32[2,2,3] = lt(%6, %4) @forward ""
  %8: f32[2,2,3] = select(%7, %6, %4) @forward ""
  %9: bf16[2,2,3] = cast(%8) @recompute ""
  %10: bf16[3,2,2] = transpose(%9) {perm=[2,0,1]} @recompute ""
  %11: bf16[3,1,2] = slice(%10) {axis=1, end=2, start=1} @recompute ""
  %12: bf16[3,2,2] = pad(%11) {axis=1, hi=0, lo=1} @recompute ""
  %13: bf16[6,2,2] = concat(%10, %12) {axis=0} @recompute ""
  %14: bf16[6,1,1] = reduce_max(%13) {axes=[1,2]} @backward "a.b"
  %15: bf16[6,2,2] = broadcast(%14) @backward "a.b"
  %16: f32[6,2,2] = matmul(%15, %13) {ta=false, tb=true} @backward "a.b"
  %17: f32[4,6] = reshape(%16) @backward "a.b"
  %18: i32[4] = iota() {axis=0} @backward "a.b"
  %19: f32[4,6] = scatter_add(%18, %17) @backward "a.b"
  %20: f32[4,6] = state "acc"
  %21: f32[4,6] = const() {value=0.1} @update ""
  %22: f32[4,6] = mul(%19, %21) @update ""
  output "ids" = %2
  output "acc" = %22 updates %20
}
"#;

#[test]
fn every_kind_of_statement_round_trips() {
    let g = read(EVERY_PRIM).unwrap();
    verify(&g).unwrap();
    assert_eq!(print(&g), EVERY_PRIM);
    assert_eq!(read(&print(&g)).unwrap(), g);
}

#[test]
fn numbering_and_layout_are_free() {
    let g =
        read("graph g { # a comment\n%7: f32[2]=data \"x\" %3:f32[2]=exp(%7)@update \"\"output \"y\"=%3}")
            .unwrap();
    assert_eq!(
        print(&g),
        "graph g {\n  %0: f32[2] = data \"x\"\n  %1: f32[2] = exp(%0) @update \"\"\n  output \"y\" = %1\n}\n"
    );
}

#[test]
fn floats_keep_every_bit() {
    for value in [1e-5, 0.1 + 0.2, f64::MIN_POSITIVE, -0.0, 1e300, 3.0, f64::INFINITY] {
        let text = format!("graph g {{\n  %0: f32[1] = const() {{value={value:?}}} @forward \"\"\n}}\n");
        let g = read(&text).unwrap();
        assert_eq!(print(&g), text);
    }
}

#[test]
fn errors_name_the_place() {
    let check =
        |text: &str, expected: &str| assert_eq!(read(text).unwrap_err().to_string(), expected, "{text}");
    check("", "line 1, column 1: expected `graph`, found the end of the text");
    check("graph g {\n  output \"y\" = %3 }", "line 2, column 16: %3 is not defined above");
    check("graph g {\n%0: f64[1]", "line 2, column 5: `f64` is no element type (f32, bf16, f16, i32)");
    check("graph g {\n%0: f32[]", "line 2, column 5: f32[] has no axes; a scalar is [1]");
    let big = "f32[4294967296,4294967296]";
    check(&format!("graph g {{\n%0: {big}"), &format!("line 2, column 5: {big} is larger than 2^48 bytes"));
    check("graph g { %0: f32[99999999999]", "line 1, column 19: `99999999999` is no integer within ±2^32");
    check("graph g { %0: f32[1] = data \"x", "line 1, column 29: this string does not end on its line");
    check(
        "graph g { %0: f32[1] = magic()",
        "line 1, column 31: there is no operation `magic`".replace("31", "24").as_str(),
    );
    check(
        "graph g { %0: f32[1] = const() @forward \"\"",
        "line 1, column 32: `value` must be a number, found nothing",
    );
    check("graph g { %0: f32[1] = const() {value=1e999}", "line 1, column 39: `1e999` is no float");
    check(
        "graph g { %0: f32[1] = const() {value=1.0, x=2} @forward \"\"",
        "line 1, column 32: `const` has no attribute `x`",
    );
    check(
        "graph g { %0: f32[1] = data \"x\" %0: f32[1] = data \"y\" }",
        "line 1, column 33: %0 is defined twice",
    );
    check("graph g { é", "line 1, column 11: unexpected character 'é'");
    check("graph g { } }", "line 1, column 13: expected the end of the text, found `}`");
}

#[test]
fn damaged_text_never_panics() {
    for i in 0..EVERY_PRIM.len() {
        if EVERY_PRIM.is_char_boundary(i) {
            assert!(read(&EVERY_PRIM[..i]).is_err() || i + 1 >= EVERY_PRIM.len());
            let mut damaged = EVERY_PRIM.to_string();
            damaged.insert(i, '9');
            if let Ok(g) = read(&damaged) {
                let _ = verify(&g);
            }
        }
    }
}
