//! Shared memory of a kernel: regions, and where barriers are needed between threads that write and read them.

use crate::tile::ir::{Elem, Var};
use std::collections::BTreeMap;

/// What threads exchange data through.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Place {
    /// A tile for dots.
    Tile(Var),
    /// Space that reductions and changes of layout use in turn.
    Scratch(usize),
    /// A buffer that is read and written.
    Buffer(usize),
}

/// A tile in shared memory.
#[derive(Clone, Debug)]
pub(super) struct Region {
    /// Type of its elements.
    pub elem: Elem,
    /// Extents.
    pub dims: [usize; 2],
    /// The axis along which elements are consecutive.
    pub fast: usize,
    /// Bytes of its rows if they are swizzled (`kfc_swizzled`), for `wgmma`.
    pub swizzle: Option<usize>,
    /// How many such tiles there are, one after the other.
    pub slots: usize,
}

/// Bytes of a barrier.
const BARRIER: usize = 8;

/// Where swizzled tiles begin.
const PATTERN: usize = 1024;

impl Region {
    /// Whether pieces of 16 bytes change places instead of rows being padded (`kfc_swizzle`).
    fn is_exchanged(&self) -> bool {
        self.elem.bytes() == 2
    }

    /// Distance of elements along the other axis: 16 bytes of padding keep 8 rows in different banks, where nothing else does.
    pub(super) fn pitch(&self) -> usize {
        self.dims[self.fast] + if self.is_exchanged() { 0 } else { 16 / self.elem.bytes() }
    }

    /// Elements of a slot: multiples of 16 bytes, or of what swizzling repeats after.
    pub(super) fn elements(&self) -> usize {
        if self.swizzle.is_some() {
            return (self.dims[0] * self.dims[1]).next_multiple_of(PATTERN / self.elem.bytes());
        }
        self.pitch() * self.dims[1 - self.fast]
    }

    fn bytes(&self) -> usize {
        self.elements() * self.elem.bytes() * self.slots
    }

    /// Index of element `(i, j)` in source.
    pub(super) fn index(&self) -> String {
        let pitch = self.pitch();
        let (row, column) = if self.fast == 1 { ("i", "j") } else { ("j", "i") };
        if let Some(bytes) = self.swizzle {
            format!("kfc_swizzled<{bytes}, {}>({row}, {column})", self.dims[1 - self.fast])
        } else if self.is_exchanged() {
            format!("kfc_swizzle<{pitch}>({row}, {column})")
        } else {
            format!("{row} * {pitch} + {column}")
        }
    }
}

/// Tiles in shared memory of which each thread only sees what it put there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    /// Type of its elements.
    pub elem: Elem,
    /// Elements of a slot.
    pub elements: usize,
    /// How many there are, one after the other.
    pub slots: usize,
}

/// The barriers of a ring that the hardware fills (`bulk`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Bulk {
    /// What their names end with.
    pub number: usize,
    /// Slots of the ring.
    pub slots: usize,
    /// Warps that free a slot.
    pub warps: usize,
}

/// What was written and read since the last barrier.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Since {
    written: Vec<Place>,
    read: Vec<Place>,
    /// Copies are under way that a barrier must wait for.
    copies: bool,
}

impl Since {
    /// Says that the wait for copies is arranged for.
    pub(super) fn settled(&mut self) {
        self.copies = false;
    }

    /// Says that threads read what none of them has written here.
    pub(super) fn reads(&mut self, place: Place) {
        if !self.read.contains(&place) {
            self.read.push(place);
        }
    }

    /// Whether some may still be about to read here.
    pub(super) fn was_read(&self, place: Place) -> bool {
        self.read.contains(&place)
    }

    /// What may have happened in either case.
    pub(super) fn or(&self, other: &Since) -> Since {
        let both = |a: &[Place], b: &[Place]| {
            let mut all = [a, b].concat();
            all.sort_unstable();
            all.dedup();
            all
        };
        Since {
            written: both(&self.written, &other.written),
            read: both(&self.read, &other.read),
            copies: self.copies || other.copies,
        }
    }
}

/// Regions and what happened to them.
#[derive(Default)]
pub(super) struct Shared {
    pub regions: BTreeMap<Var, Region>,
    pub own: BTreeMap<Var, Own>,
    pub bulk: Vec<Bulk>,
    scratch: [usize; 2],
    turn: usize,
    pub since: Since,
}

impl Shared {
    /// Says that threads write here. Returns whether a barrier must come first.
    pub(super) fn write(&mut self, place: Place) -> bool {
        let needed = self.since.read.contains(&place) || self.since.written.contains(&place);
        if needed {
            self.since = Since::default();
        }
        self.since.written.push(place);
        needed
    }

    /// Says that threads read here what others may have written. Returns whether a barrier must come first.
    pub(super) fn read(&mut self, place: Place) -> bool {
        let needed = self.since.written.contains(&place);
        if needed {
            self.since = Since::default();
        }
        self.since.read.push(place);
        needed
    }

    /// Says that a copy was begun that ends at the next wait.
    pub(super) fn copying(&mut self) {
        self.since.copies = true;
    }

    /// Whether tiles were written since the last barrier.
    pub(super) fn tiles(&self) -> bool {
        self.since.written.iter().any(|place| matches!(place, Place::Tile(_)))
    }

    /// Whether copies are under way.
    pub(super) fn copies(&self) -> bool {
        self.since.copies
    }

    /// Space of these bytes that the use before the last one had.
    pub(super) fn scratch(&mut self, bytes: usize) -> usize {
        self.turn = 1 - self.turn;
        let size = &mut self.scratch[self.turn];
        *size = (*size).max(bytes.next_multiple_of(16));
        self.turn
    }

    /// Whose turn it is among the two spaces of [`Shared::scratch`].
    pub(super) fn turn(&self) -> usize {
        self.turn
    }

    /// Goes back to an earlier turn: what is printed again takes the same spaces again.
    pub(super) fn turn_back(&mut self, turn: usize) {
        self.turn = turn;
    }

    /// Declarations of pointers to everything, and the bytes in all.
    pub(super) fn declarations(&self, name: impl Fn(Elem) -> &'static str) -> (Vec<String>, usize) {
        let (mut lines, mut at) = (Vec::new(), 0);
        for (v, r) in &self.regions {
            let (ty, pitch) = (name(r.elem), r.pitch());
            let [m, n] = if r.fast == 1 { r.dims } else { [r.dims[1], r.dims[0]] };
            let turned = if r.fast == 1 { "" } else { ", transposed" };
            let slots = if r.slots == 1 { String::new() } else { format!("{} of ", r.slots) };
            let rows = match r.swizzle {
                Some(bytes) => format!("in swizzled rows of {bytes} bytes"),
                None => format!("{pitch} apart"),
            };
            lines.push(format!(
                "{ty} *const s{} = reinterpret_cast<{ty} *>(shared + {at});  // {slots}{m} x {n}, {rows}{turned}",
                v.index()
            ));
            at += r.bytes();
        }
        for (v, o) in &self.own {
            let (ty, n) = (name(o.elem), v.index());
            lines.push(format!(
                "{ty} *const s{n} = reinterpret_cast<{ty} *>(shared + {at});  // {} of {}, as threads hold them",
                o.slots, o.elements
            ));
            at += (o.slots * o.elements * o.elem.bytes()).next_multiple_of(16);
        }
        for (k, size) in self.scratch.iter().enumerate().filter(|(_, size)| **size > 0) {
            lines.push(format!("unsigned char *const scratch{k} = shared + {at};"));
            at += size;
        }
        for Bulk { number: n, slots, .. } in &self.bulk {
            lines.push(format!(
                "kfc_barrier *const full{n} = reinterpret_cast<kfc_barrier *>(shared + {at}), *const free{n} = full{n} + {slots};"
            ));
            at += (2 * slots * BARRIER).next_multiple_of(16);
        }
        (lines, at)
    }
}
