//! The parameters of an edited CUDA kernel against those of its program.

use kfc_kernels::tile::Program;
use kfc_kernels::tile::cuda::type_name;

/// Compares the parameters of the kernel in `text` with those of the program, by number and type; names are free. Tensor maps
/// may follow, as many as kfc's own kernel has: all or none.
///
/// # Errors
/// If the kernel is not there, or its parameters are others: says which.
pub(super) fn check_cuda(text: &str, p: &Program) -> Result<(), String> {
    let text = without_comments(text);
    let Some(list) = parameters(&text, &p.name) else {
        return Err(format!(
            "it has no kernel {}: keep the function's name and `extern \"C\" __global__`",
            p.name
        ));
    };
    let is_map = |s: &&str| s.split_whitespace().any(|w| w == "kfc_map");
    let found: Vec<&str> = list.split(',').map(str::trim).filter(|s| !s.is_empty() && !is_map(s)).collect();
    if found.len() != p.params.len() {
        return Err(format!(
            "it takes {} parameters, its launch gives {}: {}",
            found.len(),
            p.params.len(),
            p.params.iter().map(|b| b.name.as_str()).collect::<Vec<_>>().join(", ")
        ));
    }
    for (i, (text, param)) in found.iter().zip(&p.params).enumerate() {
        let expected = type_name(param.elem);
        if pointee(text).as_deref() != Some(expected) {
            return Err(format!(
                "its parameter {} is `{text}`, its launch gives {}, `{expected} *`",
                i + 1,
                param.name
            ));
        }
    }
    Ok(())
}

/// The text between the parentheses of a kernel's parameters.
fn parameters<'a>(text: &'a str, function: &str) -> Option<&'a str> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("__global__") {
        let (head, body) = after.split_once('{')?;
        // Launch bounds may stand before the name.
        let at = head.match_indices(function).find(|(i, _)| {
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            let (before, after) = (&head[..*i], head[i + function.len()..].trim_start());
            !before.ends_with(is_name) && after.starts_with('(')
        });
        if let Some((i, _)) = at {
            let list = head[i + function.len()..].trim_start().trim_start_matches('(');
            return Some(list.rsplit_once(')').map_or(list, |(list, _)| list));
        }
        rest = body;
    }
    None
}

/// What a parameter points to; `None` if it is no pointer.
fn pointee(parameter: &str) -> Option<String> {
    let (ty, _) = parameter.split_once('*')?;
    let words: Vec<&str> = ty.split_whitespace().filter(|w| *w != "const").collect();
    Some(match words[..] {
        ["unsigned", "int"] => "unsigned".into(),
        _ => words.join(" "),
    })
}

/// A source without `//` and `/* */`; what stands in strings is taken for source.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let end = match from.as_bytes().get(1) {
            Some(b'/') => from.find('\n'),
            Some(b'*') => from.find("*/").map(|i| i + 2),
            _ => {
                out.push('/');
                Some(1)
            }
        };
        rest = end.map_or("", |end| &from[end..]);
    }
    out + rest
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use kfc_kernels::tile::Builder;
    use kfc_kernels::tile::ir::{Access, Elem};

    fn program() -> Program {
        let mut b = Builder::new("scale", "", [1, 1, 1], 1);
        b.param("x", Elem::Bf16, 8, Access::Read);
        b.param("ids", Elem::U32, 8, Access::Read);
        b.param("y", Elem::F32, 8, Access::Write);
        b.finish().unwrap()
    }

    fn check(list: &str) -> Result<(), String> {
        let text = format!(
            "// scale(int) is no kernel\n__device__ float helper(float scale) {{ return scale / 2; }}\n\
             extern \"C\" __global__ void __launch_bounds__(32) scale({list}) {{\n}}\n"
        );
        check_cuda(&text, &program())
    }

    #[test]
    fn names_qualifiers_and_comments_are_free() {
        check("const kfc_bf16 *x_ptr, const unsigned *ids_ptr, float *y_ptr").unwrap();
        check("kfc_bf16 const *__restrict__ a, /* ids, of rows */ const unsigned int* b, // last\nfloat *c")
            .unwrap();
        check("const kfc_bf16 *x, const unsigned *ids, float *y, const __grid_constant__ kfc_map map0")
            .unwrap();
    }

    #[test]
    fn other_parameters_are_named() {
        let error = |list: &str| check(list).unwrap_err();
        assert!(
            error("const kfc_bf16 *x, float *y")
                .contains("takes 2 parameters, its launch gives 3: x, ids, y")
        );
        let swapped = error("const kfc_bf16 *x, float *y, const unsigned *ids");
        assert!(
            swapped.contains("parameter 2 is `float *y`, its launch gives ids, `unsigned *`"),
            "{swapped}"
        );
        assert!(error("const kfc_bf16 *x, unsigned n, float *y").contains("parameter 2 is `unsigned n`"));
        let other = check_cuda("extern \"C\" __global__ void rescale(float *y) {}", &program());
        assert!(other.unwrap_err().contains("no kernel scale"));
    }
}
