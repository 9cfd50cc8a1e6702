//! What stands above a kernel in the file that `kfc compile --emit` writes: what it computes, its buffers, how it is launched
//! and how it is edited. One line is also read back, from a file that somebody edited:
//!
//! ```text
//! # kfc: kernel=linear_2 grid=8,4,1 num_warps=4 num_stages=3
//! // kfc: kernel=linear_2 grid=8,4,1 threads=128 shared=65536
//! ```
//!
//! It is no part of what a kernel is known by: that is its printed source alone.

use super::lower::{Kernel, Origin};
use std::fmt::Write;

/// In which language a kernel is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Language {
    /// CUDA C++, `NAME.cu`.
    Cuda,
    /// Triton, `NAME.py`.
    Triton,
}

impl Language {
    /// Ending of its files.
    pub const fn ending(self) -> &'static str {
        match self {
            Language::Cuda => "cu",
            Language::Triton => "py",
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Language::Cuda => "CUDA C++",
            Language::Triton => "Triton",
        }
    }

    const fn comment(self) -> &'static str {
        match self {
            Language::Cuda => "//",
            Language::Triton => "#",
        }
    }

    /// The words of the `kfc:` line that a language has beside `kernel` and `grid`.
    const fn words(self) -> [&'static str; 2] {
        match self {
            Language::Cuda => ["threads", "shared"],
            Language::Triton => ["num_warps", "num_stages"],
        }
    }
}

/// How an edited kernel is launched, as far as its file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Blocks.
    pub grid: Option<[usize; 3]>,
    /// Threads of a block (CUDA C++), or warps (Triton).
    pub width: Option<usize>,
    /// Bytes of shared memory that are asked for at launch (CUDA C++), or stages of pipelined loops (Triton).
    pub depth: Option<usize>,
}

/// Stages of a loop that Triton pipelines unless it is told another number.
pub const STAGES: usize = 3;

/// The file of a kernel: a header in place of the one that `source` begins with, which tells how it is launched, and the rest
/// of it.
pub fn with_header(
    kernel: &Kernel,
    origin: &Origin,
    language: Language,
    launch: Settings,
    source: &str,
) -> String {
    let (c, p) = (language.comment(), &kernel.program);
    let [width, depth] = language.words();
    let grid = launch.grid.unwrap_or(p.grid);
    let mut t = format!("{c} {}: {}\n{c}\n", kernel.name, p.doc.trim_end().replace('\n', &format!("\n{c} ")));
    for line in ["Part of:".to_string()].iter().chain(&origin.operation) {
        let _ = writeln!(t, "{c}   {line}");
    }
    let _ = writeln!(t, "{c}\n{c}   Buffers, in the order of parameters:");
    for (i, b) in p.params.iter().enumerate() {
        let whose = origin.operands.get(i).map_or("", String::as_str);
        let (name, access) = (format!("{}_ptr", b.name), b.access.name());
        let _ = writeln!(t, "{c}   {name:<16} {}[{}], {access} ({whose})", b.elem.name(), b.len);
    }
    for group in &origin.shared {
        let same = |i: usize| group.iter().enumerate().filter(move |(j, first)| **first == i && *j != i);
        for i in 0..group.len() {
            for (j, _) in same(i).filter(|(j, _)| p.params.get(*j).is_some()) {
                let _ = writeln!(
                    t,
                    "{c}   {}_ptr and {}_ptr may be one buffer",
                    p.params[i].name, p.params[j].name
                );
            }
        }
    }
    let (name, ending) = (&kernel.name, language.ending());
    let _ = writeln!(
        t,
        "{c}\n{c} Launch; what stands in the next line may be changed with the kernel, the parameters may not:\n{c} kfc: \
         kernel={name} grid={},{},{} {width}={} {depth}={}\n{c}",
        grid[0],
        grid[1],
        grid[2],
        launch.width.unwrap_or(p.warps),
        launch.depth.unwrap_or(0),
    );
    let _ = writeln!(
        t,
        "{c} Alone, in the folder with job.toml:  kfc bench --job job.toml --device cuda --kernel \
         {name}=kernels/{name}.{ending}\n{c} In a run:  kfc train job.toml --device cuda --kernel \
         {name}=kernels/{name}.{ending}\n{c} Both check it first, against what the original means."
    );
    t.push('\n');
    let body = source.lines().skip_while(|line| line.starts_with(c) || line.is_empty());
    body.for_each(|line| t += &format!("{line}\n"));
    t
}

/// What the `kfc:` line of a file says; nothing if there is none.
///
/// # Errors
/// If a word in it is unknown or no number, or it is another kernel's.
pub fn settings(text: &str, language: Language, function: &str) -> Result<Settings, String> {
    let start = format!("{} kfc:", language.comment());
    let Some(line) = text.lines().find_map(|l| l.trim().strip_prefix(&start)) else {
        return Ok(Settings::default());
    };
    let [width, depth] = language.words();
    let mut s = Settings::default();
    for word in line.split_whitespace() {
        let wrong = || {
            format!(
                "its line `{start}` has the word `{word}`; use kernel=NAME grid=X,Y,Z {width}=N {depth}=N"
            )
        };
        let (name, value) = word.split_once('=').ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
        match name {
            // A number behind the name tells kernels of one plan apart.
            "kernel"
                if value.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_') != trimmed(function) =>
            {
                return Err(format!("it is the kernel {value}, by its line `{start}`"));
            }
            "kernel" => {}
            "grid" => {
                let extents: Vec<usize> = value.split(',').map(number).collect::<Result<_, _>>()?;
                let grid: [usize; 3] = extents.try_into().map_err(|_| wrong())?;
                if grid.contains(&0) || grid[1].max(grid[2]) > 65_535 || grid[0] > i32::MAX as usize {
                    return Err(format!("a grid of {value} blocks cannot be launched"));
                }
                s.grid = Some(grid);
            }
            _ if name == width => s.width = Some(number(value)?),
            _ if name == depth => s.depth = Some(number(value)?),
            _ => return Err(wrong()),
        }
    }
    let is_launchable = match (language, s.width) {
        (_, None) => true,
        (Language::Cuda, Some(threads)) => (1..=1024).contains(&threads),
        (Language::Triton, Some(warps)) => warps.is_power_of_two() && warps <= 32,
    };
    match (is_launchable, s.width) {
        (false, Some(n)) => Err(format!("{width}={n} cannot be launched")),
        _ => Ok(s),
    }
}

fn trimmed(name: &str) -> &str {
    name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_back() {
        let text = "# adamw: one step\n#\n# kfc: kernel=adamw_3 grid=8,4,1 num_warps=8 num_stages=2\nimport triton\n";
        let s = settings(text, Language::Triton, "adamw").unwrap();
        assert_eq!(s, Settings { grid: Some([8, 4, 1]), width: Some(8), depth: Some(2) });
        // The line of the other language is none.
        assert_eq!(settings(text, Language::Cuda, "adamw").unwrap(), Settings::default());
        let s = settings("// kfc: threads=96\n", Language::Cuda, "adamw").unwrap();
        assert_eq!(s, Settings { grid: None, width: Some(96), depth: None });
    }

    #[test]
    fn wrong_settings_are_named() {
        for (line, part) in [
            ("kernel=linear_2", "it is the kernel linear_2"),
            ("grid=8,4", "grid=X,Y,Z"),
            ("grid=8,0,1", "cannot be launched"),
            ("grid=1,70000,1", "cannot be launched"),
            ("num_warps=3", "cannot be launched"),
            ("warps=4", "the word `warps=4`"),
            ("num_stages=two", "the word `num_stages=two`"),
        ] {
            let error = settings(&format!("# kfc: {line}\n"), Language::Triton, "adamw").unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
