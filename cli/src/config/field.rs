//! Reading and printing one value of each type that a configuration key can have.

use super::error::ConfigError;
use super::node::{Node, Origin, Value};
use super::units;
use kfc_graph::DType;
use kfc_runtime::config::{
    DataFormat, Divergence, Embeddings, EwcMode, Important, LongRows, LoraInit, LoraTargets, LossScale,
    ModelInit, OnError, RecomputePolicy, Schedule, Streaming,
};
use std::path::{Path, PathBuf};

/// What decoding needs to know beside the values: where the file is.
pub(super) struct Context {
    file: String,
    /// Folder of the file, absolute: where its relative paths start.
    file_folder: PathBuf,
    /// Where relative paths of overrides start.
    current_folder: PathBuf,
}

impl Context {
    pub(super) fn new(path: &Path) -> Result<Context, ConfigError> {
        let file = path.display().to_string();
        let absolute = |folder: &Path| {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let absolute = std::path::absolute(folder).map_err(|error| {
                ConfigError::new(file.clone(), None, format!("the current folder cannot be found: {error}"))
            })?;
            match absolute.to_str() {
                Some(_) => Ok(absolute),
                None => {
                    let problem = "lies in a folder whose name is not UTF-8, which a configuration cannot hold; move it";
                    Err(ConfigError::new(file.clone(), None, problem))
                }
            }
        };
        let file_folder = absolute(path.parent().unwrap_or(Path::new("")))?;
        let current_folder = absolute(Path::new(""))?;
        Ok(Context { file, file_folder, current_folder })
    }

    /// An error about `field` at `origin`.
    pub(super) fn error(&self, origin: &Origin, field: &str, problem: impl Into<String>) -> ConfigError {
        let place = match origin {
            Origin::Line(line) => format!("{}:{line}", self.file),
            Origin::Set(text) => format!("--set {text}"),
        };
        ConfigError::new(place, (!field.is_empty()).then(|| field.to_owned()), problem)
    }

    /// "expected ..., found ...".
    pub(super) fn wrong_type(&self, node: &Node, field: &str, expected: &str) -> ConfigError {
        self.error(&node.at, field, format!("expected {expected}, found {}", node.describe()))
    }

    fn resolve(&self, text: &str, origin: &Origin) -> PathBuf {
        let base = match origin {
            Origin::Line(_) => &self.file_folder,
            Origin::Set(_) => &self.current_folder,
        };
        let joined = base.join(text);
        // What exists is named without `..` and links; what does not (yet) only loses `.` and doubled separators.
        joined.canonicalize().or_else(|_| std::path::absolute(&joined)).unwrap_or(joined)
    }
}

/// A type that a key can have.
pub(super) trait Field: Sized {
    /// Decodes `node`; `field` is its full name, for errors.
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError>;

    /// As TOML, so that it reads back equal; `None` if it has no explicit form (the key is left out).
    fn show(&self) -> Option<String>;

    /// What is expected, for errors and the reference.
    fn kind() -> String;
}

impl Field for usize {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        read_integer(node, field, context, usize::MAX as i128).map(|value| value as usize)
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }

    fn kind() -> String {
        "a whole number".into()
    }
}

impl Field for u64 {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        read_integer(node, field, context, u64::MAX as i128).map(|value| value as u64)
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }

    fn kind() -> String {
        "a whole number".into()
    }
}

fn read_integer(node: &Node, field: &str, context: &Context, max: i128) -> Result<i128, ConfigError> {
    match node.value {
        Value::Int(value) if (0..=max).contains(&value) => Ok(value),
        Value::Int(value) if value < 0 => {
            Err(context.error(&node.at, field, format!("is {value}, but must not be negative")))
        }
        Value::Int(value) => {
            Err(context.error(&node.at, field, format!("is {value}, but must be at most {max}")))
        }
        _ => Err(context.wrong_type(node, field, "a whole number")),
    }
}

impl Field for f64 {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        let value = match node.value {
            Value::Int(value) => value as f64,
            Value::Float(value) => value,
            _ => return Err(context.wrong_type(node, field, "a number")),
        };
        if value.is_finite() {
            // Zero has one form, so that printing and reading back gives the same bits.
            Ok(value + 0.0)
        } else {
            Err(context.error(&node.at, field, format!("is {value:?}, but must be finite")))
        }
    }

    fn show(&self) -> Option<String> {
        Some(format!("{self:?}"))
    }

    fn kind() -> String {
        "a number".into()
    }
}

impl Field for bool {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        match node.value {
            Value::Bool(value) => Ok(value),
            _ => Err(context.wrong_type(node, field, "true or false")),
        }
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }

    fn kind() -> String {
        "true or false".into()
    }
}

impl Field for String {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        match &node.value {
            Value::Str(text) if text.is_empty() => Err(context.error(&node.at, field, "is empty")),
            Value::Str(text) => Ok(text.clone()),
            _ => Err(context.wrong_type(node, field, "a string")),
        }
    }

    fn show(&self) -> Option<String> {
        Some(quote(self))
    }

    fn kind() -> String {
        "a string".into()
    }
}

impl Field for PathBuf {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        match &node.value {
            Value::Str(text) if text.is_empty() => {
                Err(context.error(&node.at, field, "is empty; give a path"))
            }
            Value::Str(text) if text.contains('\0') => {
                Err(context.error(&node.at, field, "contains a NUL character, which no path may"))
            }
            Value::Str(text) => Ok(context.resolve(text, &node.at)),
            _ => Err(context.wrong_type(node, field, "a path in quotes")),
        }
    }

    fn show(&self) -> Option<String> {
        Some(quote(&self.to_string_lossy()))
    }

    fn kind() -> String {
        "a path".into()
    }
}

/// A list; a single value stands for a list of one.
impl<T: Field> Field for Vec<T> {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        match &node.value {
            Value::Array(items) => {
                let item = |(index, item)| T::read(item, &format!("{field}[{index}]"), context);
                items.iter().enumerate().map(item).collect()
            }
            Value::Str(_) => Ok(vec![T::read(node, field, context)?]),
            _ => Err(context.wrong_type(node, field, &Self::kind())),
        }
    }

    fn show(&self) -> Option<String> {
        let items: Vec<String> = self.iter().filter_map(T::show).collect();
        Some(format!("[{}]", items.join(", ")))
    }

    fn kind() -> String {
        format!("{}, or a list of them", T::kind())
    }
}

/// A key that may be left out.
impl<T: Field> Field for Option<T> {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        T::read(node, field, context).map(Some)
    }

    fn show(&self) -> Option<String> {
        self.as_ref().and_then(T::show)
    }

    fn kind() -> String {
        T::kind()
    }
}

/// Two numbers.
impl Field for (f64, f64) {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        match &node.value {
            Value::Array(items) if items.len() == 2 => {
                let item = |index: usize| f64::read(&items[index], &format!("{field}[{index}]"), context);
                Ok((item(0)?, item(1)?))
            }
            _ => Err(context.wrong_type(node, field, "a list of two numbers")),
        }
    }

    fn show(&self) -> Option<String> {
        Some(format!("[{:?}, {:?}]", self.0, self.1))
    }

    fn kind() -> String {
        "a list of two numbers".into()
    }
}

/// A closed set of names.
pub(super) trait Choice: Copy + PartialEq + 'static {
    /// Every value with its name.
    const ALL: &'static [(&'static str, Self)];
}

impl<C: Choice> Field for C {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        let Value::Str(text) = &node.value else {
            return Err(context.wrong_type(node, field, &Self::kind()));
        };
        let found = C::ALL.iter().find(|(name, _)| name == text).map(|(_, value)| *value);
        found.ok_or_else(|| {
            context.error(&node.at, field, format!("is {}, but must be {}", quote(text), Self::kind()))
        })
    }

    fn show(&self) -> Option<String> {
        C::ALL.iter().find(|(_, value)| value == self).map(|(name, _)| quote(name))
    }

    fn kind() -> String {
        let names: Vec<String> = C::ALL.iter().map(|(name, _)| quote(name)).collect();
        match names.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => names.concat(),
        }
    }
}

macro_rules! choice {
    ($type:ty: $($name:literal => $value:expr),+ $(,)?) => {
        impl Choice for $type {
            const ALL: &'static [(&'static str, Self)] = &[$(($name, $value)),+];
        }
    };
}

choice!(ModelInit: "pretrained" => ModelInit::Pretrained, "random" => ModelInit::Random);
choice!(DType: "bf16" => DType::Bf16, "f32" => DType::F32, "f16" => DType::F16);
choice!(Divergence:
    "forward_kl" => Divergence::ForwardKl, "reverse_kl" => Divergence::ReverseKl, "jsd" => Divergence::Jsd);
choice!(EwcMode: "delta" => EwcMode::Delta, "adapter" => EwcMode::Adapter, "weights" => EwcMode::Weights);
choice!(Important: "keep" => Important::Keep, "slow" => Important::Slow, "freeze" => Important::Freeze);
choice!(DataFormat:
    "jsonl" => DataFormat::Jsonl, "text" => DataFormat::Text, "tokens" => DataFormat::Tokens,
    "webdataset" => DataFormat::WebDataset);
choice!(Embeddings: "auto" => Embeddings::Auto, "memory" => Embeddings::Memory, "file" => Embeddings::File);
choice!(Streaming: "auto" => Streaming::Auto, "on" => Streaming::On, "off" => Streaming::Off);
choice!(OnError: "fail" => OnError::Fail, "skip" => OnError::Skip);
choice!(LongRows: "split" => LongRows::Split, "truncate" => LongRows::Truncate, "error" => LongRows::Error);
choice!(Schedule: "cosine" => Schedule::Cosine, "linear" => Schedule::Linear, "constant" => Schedule::Constant);

impl Field for LoraTargets {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        if matches!(&node.value, Value::Str(text) if text == "all-linear") {
            return Ok(LoraTargets::AllLinear);
        }
        if !matches!(node.value, Value::Str(_) | Value::Array(_)) {
            return Err(context.wrong_type(node, field, &Self::kind()));
        }
        let names = Vec::<String>::read(node, field, context)?;
        if names.is_empty() {
            return Err(context.error(
                &node.at,
                field,
                "names nothing to adapt; list modules, or write \"all-linear\"",
            ));
        }
        Ok(LoraTargets::Names(names))
    }

    fn show(&self) -> Option<String> {
        match self {
            LoraTargets::AllLinear => Some(quote("all-linear")),
            LoraTargets::Names(names) => names.show(),
        }
    }

    fn kind() -> String {
        "\"all-linear\" or a list of module names".into()
    }
}

impl Field for LoraInit {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        match &node.value {
            Value::Str(text) if text == "default" => Ok(LoraInit::Default),
            Value::Str(_) => PathBuf::read(node, field, context).map(LoraInit::Path),
            _ => Err(context.wrong_type(node, field, &Self::kind())),
        }
    }

    fn show(&self) -> Option<String> {
        match self {
            LoraInit::Default => Some(quote("default")),
            LoraInit::Path(path) => path.show(),
        }
    }

    fn kind() -> String {
        "\"default\" or the path of an adapter folder".into()
    }
}

impl Field for LossScale {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        match &node.value {
            Value::Str(text) if text == "dynamic" => Ok(LossScale::Dynamic),
            Value::Int(_) | Value::Float(_) => f64::read(node, field, context).map(LossScale::Static),
            _ => Err(context.wrong_type(node, field, &Self::kind())),
        }
    }

    fn show(&self) -> Option<String> {
        match self {
            LossScale::Dynamic => Some(quote("dynamic")),
            LossScale::Static(scale) => scale.show(),
        }
    }

    fn kind() -> String {
        "a number or \"dynamic\"".into()
    }
}

impl Field for RecomputePolicy {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        match &node.value {
            Value::Str(text) if text == "auto" => Ok(RecomputePolicy::Auto),
            Value::Str(text) if text == "none" => Ok(RecomputePolicy::Off),
            Value::Str(text) if text == "layer" => Ok(RecomputePolicy::EveryLayer),
            Value::Str(text) if text == "attention" => Ok(RecomputePolicy::Attention),
            Value::Int(_) => match usize::read(node, field, context)? {
                0 => Err(context.error(&node.at, field, "is 0; leave it out, or use \"none\"")),
                k => Ok(RecomputePolicy::EveryK(k)),
            },
            _ => Err(context.wrong_type(node, field, &Self::kind())),
        }
    }

    fn show(&self) -> Option<String> {
        match self {
            RecomputePolicy::Auto => Some(quote("auto")),
            RecomputePolicy::Off => Some(quote("none")),
            RecomputePolicy::EveryLayer => Some(quote("layer")),
            RecomputePolicy::EveryK(k) => k.show(),
            RecomputePolicy::Attention => Some(quote("attention")),
        }
    }

    fn kind() -> String {
        "\"auto\", \"none\", \"layer\", \"attention\" or a number of layers".into()
    }
}

/// A number of bytes, written with a unit or without.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bytes(pub(super) u64);

impl Field for Bytes {
    fn read(node: &Node, field: &str, context: &Context) -> Result<Self, ConfigError> {
        match &node.value {
            Value::Str(text) => {
                units::parse_bytes(text).map(Bytes).map_err(|problem| context.error(&node.at, field, problem))
            }
            Value::Int(0) => Err(context.error(&node.at, field, "is 0; leave it out for no limit")),
            Value::Int(_) => u64::read(node, field, context).map(Bytes),
            _ => Err(context.wrong_type(node, field, &Self::kind())),
        }
    }

    fn show(&self) -> Option<String> {
        Some(units::exact_bytes(self.0))
    }

    fn kind() -> String {
        "a size such as \"8GiB\" or \"512MB\", or a number of bytes".into()
    }
}

/// `text` as a TOML basic string.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
