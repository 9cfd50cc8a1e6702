//! Loops: what they carry from round to round, and barriers that hold in every round.

use super::assign::identity;
use super::express::type_name;
use super::print::Printer;
use super::stages::Ring;
use crate::tile::ir::{Carried, Inst, Stmt};

impl<'a> Printer<'a> {
    pub(super) fn repeat(&mut self, s: &'a Stmt) {
        let Inst::For { index, from, to, step, carried, body } = &s.inst else { return };
        self.refill();
        for c in carried {
            let (name, ty) = (self.name(c.inner), type_name(self.plan.elem(c.inner)));
            if self.p.ty(c.inner).is_scalar() {
                let init = self.scalar(c.init);
                self.line(&format!("{ty} {name} = {init};"));
            } else {
                let (layout, map) = (self.plan.layout(c.inner), identity(&self.p.ty(c.init).dims));
                self.each(&layout, 1, &[(c.init, &map)], |this, g| {
                    g.declarations.push(format!("{ty} {name}[{}];", layout.registers()));
                    vec![format!("{name}[e] = {};", this.at(g, c.init, &map))]
                });
            }
            self.names.insert(c.result, name);
        }
        self.flush();
        if let Some(bulk) = self.bulk_of(s) {
            return self.repeat_bulk(&bulk);
        }
        let i = self.name(*index);
        let (from, to) = (self.scalar(*from), self.scalar(*to));
        let outside = self.shared.since.clone();
        let ring = self.ring(s);
        if let Some(ring) = &ring {
            self.begin(ring, &from);
        }
        self.line(&format!("for (int {i} = {from}; {i} < {to}; {i} += {step}) {{"));
        self.depth += 1;
        // What a round leaves behind is there when the next one starts: print it once to see what that is.
        let (length, temporaries, before) = (self.text.len(), self.temporaries, self.shared.since.clone());
        let turn = self.shared.turn();
        self.round(ring.as_ref(), body, carried);
        let entry = before.or(&self.shared.since);
        self.text.truncate(length);
        self.temporaries = temporaries;
        self.shared.turn_back(turn);
        self.shared.since = entry.clone();
        self.round(ring.as_ref(), body, carried);
        self.depth -= 1;
        self.line("}");
        self.shared.since = outside.or(&entry).or(&self.shared.since);
    }

    fn round(&mut self, ring: Option<&Ring<'a>>, body: &'a [Stmt], carried: &[Carried]) {
        let kept = self.converted.len();
        if let Some(ring) = ring {
            self.turn(ring);
        }
        body.iter().for_each(|s| self.statement(s));
        // All are read before any is written: one may be what another one was.
        let mut next = Vec::new();
        for c in carried.iter().filter(|c| c.next != c.inner) {
            let layout = self.plan.layout(c.inner);
            next.push(if self.p.ty(c.inner).is_scalar() {
                let (name, value) = (self.temporary(), self.scalar(c.next));
                self.flush();
                self.line(&format!("const {} {name} = {value};", type_name(self.plan.elem(c.inner))));
                name
            } else if carried.iter().any(|d| d.inner == c.next) {
                let name = self.temporary();
                let (ty, n, value) =
                    (type_name(self.plan.elem(c.inner)), layout.registers(), self.name(c.next));
                self.each(&layout, 1, &[], |_, g| {
                    g.declarations.push(format!("{ty} {name}[{n}];"));
                    vec![format!("{name}[e] = {value}[e];")]
                });
                name
            } else {
                self.whole(c.next, &layout)
            });
        }
        for (c, value) in carried.iter().filter(|c| c.next != c.inner).zip(next) {
            let name = self.name(c.inner);
            if self.p.ty(c.inner).is_scalar() {
                self.flush();
                self.line(&format!("{name} = {value};"));
            } else {
                let layout = self.plan.layout(c.inner);
                self.each(&layout, 1, &[], |_, _| vec![format!("{name}[e] = {value}[e];")]);
            }
        }
        self.flush();
        if let Some(ring) = ring {
            self.advance(ring);
        }
        self.converted.truncate(kept);
    }
}
