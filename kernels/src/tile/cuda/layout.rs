//! Which thread holds which element of a tile.
//!
//! A layout names, for each bit of the register number and of the thread number, the bit of a coordinate that it selects.
//! All extents are powers of two, so every layout that is needed here, its slices and its transpose are of this form: the
//! permutations among the linear layouts of Zhou et al., "Linear Layouts" (2025), arXiv:2505.23819.

/// A bit of a coordinate: axis, position.
pub(super) type Bit = (usize, u32);

/// Distribution of a tile over the registers and threads of a block. Axes are those of extent above 1, in order.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub(super) struct Layout {
    /// What each bit of the register number selects, the lowest first.
    pub slots: Vec<Bit>,
    /// What each bit of the thread number selects, the lowest first; `None`: threads that differ in it hold the same.
    pub threads: Vec<Option<Bit>>,
}

fn log2(n: usize) -> u32 {
    n.trailing_zeros()
}

/// Bits of coordinates in order of an index whose fastest axis is `order[0]`.
fn flat_bits(dims: &[usize], order: &[usize]) -> Vec<Bit> {
    order.iter().flat_map(|&axis| (0..log2(dims[axis])).map(move |b| (axis, b))).collect()
}

impl Layout {
    /// `vec` consecutive elements a thread, then across threads, then again; `order` lists axes, the fastest first.
    pub(super) fn blocked(dims: &[usize], order: &[usize], vec: usize, threads: usize) -> Layout {
        let bits = flat_bits(dims, order);
        let low = (log2(vec) as usize).min(bits.len());
        let wide = (log2(threads) as usize).min(bits.len() - low);
        let mut spread: Vec<Option<Bit>> = bits[low..low + wide].iter().copied().map(Some).collect();
        spread.resize(log2(threads) as usize, None);
        let slots = bits[..low].iter().chain(&bits[low + wide..]).copied().collect();
        Layout { slots, threads: spread }
    }

    /// Results of `mma.m16n8k16` over `[m, n]`, warps over rows first if `tall`, else over both about equally. Slots are
    /// numbered `((tile row · tile columns) + tile column) · 4 + register`.
    pub(super) fn mma(m: usize, n: usize, warps: usize, tall: bool) -> Layout {
        let (wm, wn) = warp_grid(m, n, warps, tall);
        let (mt, nt) = (log2(m / 16 / wm), log2(n / 8 / wn));
        let mut slots = vec![(1, 0), (0, 3)];
        slots.extend((0..nt).map(|b| (1, 3 + b)));
        slots.extend((0..mt).map(|b| (0, 4 + b)));
        let mut threads: Vec<Option<Bit>> =
            [(1, 1), (1, 2), (0, 0), (0, 1), (0, 2)].into_iter().map(Some).collect();
        threads.extend((0..log2(wm)).map(|b| Some((0, 4 + mt + b))));
        threads.extend((0..log2(wn)).map(|b| Some((1, 3 + nt + b))));
        threads.resize(5 + log2(warps) as usize, None);
        Layout { slots, threads }
    }

    /// Results of `wgmma.m64nNk16` over `[m, n]`, groups of four warps over rows and columns as [`group_grid`] says. Slots are
    /// numbered `tile row · columns of a group / 2 + register`.
    pub(super) fn wgmma(m: usize, n: usize, warps: usize) -> Layout {
        let (gm, gn) = group_grid(m, n, warps);
        let (mt, nt) = (log2(m / 64 / gm), log2(n / 8 / gn));
        let mut slots = vec![(1, 0), (0, 3)];
        slots.extend((0..nt).map(|b| (1, 3 + b)));
        slots.extend((0..mt).map(|b| (0, 6 + b)));
        let mut threads: Vec<Option<Bit>> =
            [(1, 1), (1, 2), (0, 0), (0, 1), (0, 2), (0, 4), (0, 5)].into_iter().map(Some).collect();
        threads.extend((0..log2(gm)).map(|b| Some((0, 6 + mt + b))));
        threads.extend((0..log2(gn)).map(|b| Some((1, 3 + nt + b))));
        threads.resize(5 + log2(warps) as usize, None);
        Layout { slots, threads }
    }

    /// The axis along which neighbouring registers or threads hold neighbouring elements.
    pub(super) fn fastest(&self) -> usize {
        let low = |b: &Bit| b.1 == 0;
        let first = self.slots.first().filter(|b| low(b)).or(self.threads.first().and_then(|b| b.as_ref()));
        first.filter(|b| low(b)).map_or(1, |b| b.0)
    }

    /// Registers a thread.
    pub(super) fn registers(&self) -> usize {
        1 << self.slots.len()
    }

    /// The layout of a tile whose axis `a` is axis `map[a]` of this one; `None` drops what selects other axes.
    pub(super) fn project(&self, map: &[usize]) -> Layout {
        let of = |(axis, b): Bit| map.iter().position(|&to| to == axis).map(|a| (a, b));
        Layout {
            slots: self.slots.iter().filter_map(|&b| of(b)).collect(),
            threads: self.threads.iter().map(|b| b.and_then(of)).collect(),
        }
    }

    /// Whether a tile in `inner` can be read by registers that are numbered by `self`, where its axis `a` is axis `map[a]`
    /// of this one.
    pub(super) fn holds(&self, inner: &Layout, map: &[usize]) -> bool {
        let mine = self.project(map);
        mine.threads == inner.threads && inner.slots.iter().all(|b| mine.slots.contains(b))
    }

    /// Number of the register of a tile in `inner` that goes with register `e` of this layout.
    pub(super) fn slot_of(&self, inner: &Layout, map: &[usize]) -> String {
        let moves = inner.slots.iter().enumerate().filter_map(|(to, &(axis, b))| {
            let from = self.slots.iter().position(|&s| s == (map[axis], b))?;
            Some((from as u32, to as u32))
        });
        bits("e", &moves.collect::<Vec<_>>())
    }

    /// The part of a coordinate that the register number `e` selects.
    pub(super) fn slot_part(&self, axis: usize) -> String {
        let moves = self.slots.iter().enumerate().filter(|(_, b)| b.0 == axis).map(|(i, b)| (i as u32, b.1));
        bits("e", &moves.collect::<Vec<_>>())
    }

    /// The part of a coordinate that the thread number `tid` selects.
    pub(super) fn thread_part(&self, axis: usize) -> String {
        let of = |(i, b): (usize, &Option<Bit>)| b.filter(|b| b.0 == axis).map(|b| (i as u32, b.1));
        bits("tid", &self.threads.iter().enumerate().filter_map(of).collect::<Vec<_>>())
    }

    /// Bits of the thread number that select nothing.
    pub(super) fn replicas(&self) -> usize {
        self.threads.iter().enumerate().filter(|(_, b)| b.is_none()).map(|(i, _)| 1 << i).sum()
    }

    /// How many registers from each multiple of that number on hold consecutive elements of an axis.
    pub(super) fn run(&self, axis: usize) -> usize {
        let run = self.slots.iter().enumerate().take_while(|&(i, &b)| b == (axis, i as u32)).count();
        1 << run
    }
}

/// Warps over rows and over columns of a result of `mma`.
pub(super) fn warp_grid(m: usize, n: usize, warps: usize, tall: bool) -> (usize, usize) {
    let (most_m, most_n) = (m / 16, n / 16);
    if tall {
        let wm = most_m.min(warps);
        return (wm, (warps / wm).min(most_n));
    }
    let (mut wm, mut wn) = (1, 1);
    while wm * wn < warps && (wm < most_m || wn < most_n) {
        if wm < most_m && (m / wm >= n / wn || wn >= most_n) {
            wm *= 2;
        } else {
            wn *= 2;
        }
    }
    (wm, wn)
}

/// Groups of four warps over rows and over columns of a result of `wgmma`: rows first, which need no exchange.
pub(super) fn group_grid(m: usize, n: usize, warps: usize) -> (usize, usize) {
    let groups = warps / 4;
    let gm = groups.min(m / 64);
    (gm, (groups / gm).min(n / 16))
}

/// An expression that moves bits of `x`, given as pairs of positions from and to. Neighbours are moved together.
pub(super) fn bits(x: &str, moves: &[(u32, u32)]) -> String {
    let mut runs: Vec<(u32, u32, u32)> = Vec::new();
    for &(from, to) in moves {
        match runs.last_mut() {
            Some((f, t, n)) if *f + *n == from && *t + *n == to => *n += 1,
            _ => runs.push((from, to, 1)),
        }
    }
    let terms: Vec<String> = runs
        .iter()
        .map(|&(from, to, n)| {
            let mask = ((1u64 << n) - 1) << to;
            let moved = match from.cmp(&to) {
                std::cmp::Ordering::Equal => x.to_string(),
                std::cmp::Ordering::Less => format!("({x} << {})", to - from),
                std::cmp::Ordering::Greater => format!("({x} >> {})", from - to),
            };
            format!("({moved} & {mask})")
        })
        .collect();
    if terms.is_empty() { "0".into() } else { terms.join(" + ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element of the tile is held, by registers and threads that agree with `holds` and the printed expressions.
    fn covers(l: &Layout, dims: &[usize], threads: usize) {
        let mut seen = vec![0; dims.iter().product()];
        for tid in 0..threads {
            for e in 0..l.registers() {
                let mut at = [0; 2];
                for (i, &(axis, b)) in l.slots.iter().enumerate() {
                    at[axis] |= (e >> i & 1) << b;
                }
                for (i, bit) in l.threads.iter().enumerate() {
                    if let Some((axis, b)) = bit {
                        at[*axis] |= (tid >> i & 1) << b;
                    }
                }
                seen[if dims.len() == 1 { at[0] } else { at[0] * dims[1] + at[1] }] += 1;
            }
        }
        assert!(seen.iter().all(|&n| n == seen[0] && n > 0), "{l:?}");
    }

    #[test]
    fn layouts_cover_their_tiles() {
        for (dims, threads) in [([64, 64], 128), ([16, 16], 256), ([128, 32], 64), ([32, 128], 128)] {
            covers(&Layout::blocked(&dims, &[1, 0], 4, threads), &dims, threads);
            covers(&Layout::blocked(&dims, &[0, 1], 1, threads), &dims, threads);
            covers(&Layout::mma(dims[0], dims[1], threads / 32, true), &dims, threads);
            covers(&Layout::mma(dims[0], dims[1], threads / 32, false), &dims, threads);
        }
        for (dims, threads) in
            [([64, 16], 128), ([64, 64], 256), ([128, 32], 128), ([256, 256], 256), ([64, 16], 512)]
        {
            covers(&Layout::wgmma(dims[0], dims[1], threads / 32), &dims, threads);
        }
        covers(&Layout::blocked(&[4], &[0], 1, 32), &[4], 32);
    }

    #[test]
    fn slices_know_their_registers() {
        let tile = Layout::mma(64, 32, 4, true);
        let rows = tile.project(&[0]);
        assert_eq!(rows.slots, [(0, 3)]);
        assert!(tile.holds(&rows, &[0]) && !tile.holds(&rows, &[1]));
        assert_eq!(tile.slot_of(&rows, &[0]), "((e >> 1) & 1)");
        assert_eq!(tile.project(&[1, 0]).project(&[1, 0]), tile);
        assert_eq!(tile.run(1), 2);
    }
}
