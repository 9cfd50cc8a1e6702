//! The tree of a page: what html5ever's tree builder makes of markup, in one list of nodes.
//!
//! Parsing stops at pages that are built to be slow: deeper than [`MAX_DEPTH`], or with far more nodes than bytes could
//! name. Nothing here or in what walks the tree recurses.

use html5ever::interface::{ElementFlags, NodeOrText, QuirksMode, TreeSink};
use html5ever::tendril::{StrTendril, TendrilSink};
use html5ever::{Attribute, LocalName, ParseOpts, QualName, parse_document};
use std::borrow::Cow;
use std::cell::{Cell, Ref, RefCell};

/// Deepest nesting. Browsers stop at 512.
pub(super) const MAX_DEPTH: u32 = 2000;

/// Bytes handed to the parser at a time: how much can go wrong before it is seen.
const CHUNK: usize = 4096;

/// Index of a node.
pub(super) type NodeId = usize;

const DOCUMENT: NodeId = 0;

/// What a node is.
#[derive(Debug)]
pub(super) enum Kind {
    /// The page, a comment, a processing instruction: nothing to read.
    Other,
    /// Text.
    Text(String),
    /// An element, by its attributes.
    Element(Vec<Attribute>),
}

#[derive(Debug)]
struct Node {
    /// Empty unless it is an element.
    name: QualName,
    kind: Kind,
    depth: u32,
    parent: Option<NodeId>,
    previous: Option<NodeId>,
    next: Option<NodeId>,
    first: Option<NodeId>,
    last: Option<NodeId>,
}

/// A page.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
}

/// Where a walk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visit {
    /// Before the children of a node.
    Enter(NodeId),
    /// After them.
    Leave(NodeId),
}

impl Tree {
    /// Parses a page; any text is one.
    ///
    /// # Errors
    /// If it is nested too deep or grows beyond its size.
    pub(super) fn parse(html: &str) -> Result<Tree, &'static str> {
        let mut options = ParseOpts::default();
        // As a reader without scripts sees it: what stands in <noscript> is markup.
        options.tree_builder.scripting_enabled = false;
        let mut parser = parse_document(Builder::new(), options);
        let mut rest = html;
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rest.ceil_char_boundary(CHUNK.min(rest.len())));
            parser.process(StrTendril::from_slice(chunk));
            let sink = &parser.tokenizer.sink.sink;
            if sink.deepest.get() > MAX_DEPTH {
                return Err("nested too deep");
            }
            if sink.nodes.borrow().len() > 64 * CHUNK + 2 * html.len() {
                return Err("markup that repeats itself without end");
            }
            rest = after;
        }
        Ok(parser.finish())
    }

    /// What a node is.
    pub(super) fn kind(&self, node: NodeId) -> &Kind {
        &self.nodes[node].kind
    }

    /// The local name of an element, empty for other nodes.
    pub(super) fn name(&self, node: NodeId) -> &str {
        &self.nodes[node].name.local
    }

    /// An attribute of an element.
    pub(super) fn attribute(&self, node: NodeId, key: &str) -> Option<&str> {
        let Kind::Element(attributes) = &self.nodes[node].kind else { return None };
        attributes.iter().find(|a| &*a.name.local == key).map(|a| &*a.value)
    }

    /// Elements of this name, in order.
    pub(super) fn elements(&self, name: &str) -> Vec<NodeId> {
        let mut found = Vec::new();
        for visit in self.walk(DOCUMENT) {
            if let Visit::Enter(node) = visit
                && self.name(node) == name
            {
                found.push(node);
            }
        }
        found
    }

    /// The whole page.
    pub(super) fn root(&self) -> NodeId {
        DOCUMENT
    }

    /// The nodes below and with `from`, in the order of the text.
    pub(super) fn walk(&self, from: NodeId) -> Walk<'_> {
        Walk { tree: self, from, at: Some(Visit::Enter(from)) }
    }
}

/// A walk through part of a tree.
pub(super) struct Walk<'a> {
    tree: &'a Tree,
    from: NodeId,
    at: Option<Visit>,
}

impl Walk<'_> {
    /// Leaves out what is below `node`, which has just been entered; [`Visit::Leave`] follows.
    pub(super) fn skip_below(&mut self, node: NodeId) {
        self.at = Some(Visit::Leave(node));
    }
}

impl Iterator for Walk<'_> {
    type Item = Visit;

    fn next(&mut self) -> Option<Visit> {
        let visit = self.at?;
        self.at = match visit {
            Visit::Enter(node) => Some(self.tree.nodes[node].first.map_or(Visit::Leave(node), Visit::Enter)),
            Visit::Leave(node) if node == self.from => None,
            Visit::Leave(node) => {
                let node = &self.tree.nodes[node];
                node.next.map(Visit::Enter).or(node.parent.map(Visit::Leave))
            }
        };
        Some(visit)
    }
}

/// Takes html5ever's instructions.
struct Builder {
    nodes: RefCell<Vec<Node>>,
    deepest: Cell<u32>,
    nameless: QualName,
}

impl Builder {
    fn new() -> Builder {
        let nameless = QualName::new(None, html5ever::ns!(), LocalName::from(""));
        let builder = Builder { nodes: RefCell::default(), deepest: Cell::new(0), nameless };
        builder.add(builder.nameless.clone(), Kind::Other);
        builder
    }

    fn add(&self, name: QualName, kind: Kind) -> NodeId {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(Node {
            name,
            kind,
            depth: 0,
            parent: None,
            previous: None,
            next: None,
            first: None,
            last: None,
        });
        nodes.len() - 1
    }

    /// Puts `child` below `parent`, before `next` or at the end.
    fn link(&self, parent: NodeId, child: NodeId, next: Option<NodeId>) {
        self.unlink(child);
        let mut nodes = self.nodes.borrow_mut();
        let previous = next.map_or(nodes[parent].last, |next| nodes[next].previous);
        let depth = nodes[parent].depth + 1;
        let node = &mut nodes[child];
        (node.parent, node.previous, node.next, node.depth) = (Some(parent), previous, next, depth);
        match previous {
            Some(previous) => nodes[previous].next = Some(child),
            None => nodes[parent].first = Some(child),
        }
        match next {
            Some(next) => nodes[next].previous = Some(child),
            None => nodes[parent].last = Some(child),
        }
        self.deepest.set(self.deepest.get().max(depth));
    }

    fn unlink(&self, node: NodeId) {
        let mut nodes = self.nodes.borrow_mut();
        let Node { parent, previous, next, .. } = nodes[node];
        let Some(parent) = parent else { return };
        match previous {
            Some(previous) => nodes[previous].next = next,
            None => nodes[parent].first = next,
        }
        match next {
            Some(next) => nodes[next].previous = previous,
            None => nodes[parent].last = previous,
        }
        let node = &mut nodes[node];
        (node.parent, node.previous, node.next) = (None, None, None);
    }

    /// Adds a node or text; text goes on the text before it, if that is what comes before.
    fn insert(&self, parent: NodeId, what: NodeOrText<NodeId>, next: Option<NodeId>) {
        let text = match what {
            NodeOrText::AppendNode(node) => return self.link(parent, node, next),
            NodeOrText::AppendText(text) => text,
        };
        let before = {
            let nodes = self.nodes.borrow();
            next.map_or(nodes[parent].last, |next| nodes[next].previous)
        };
        if let Some(before) = before
            && let Kind::Text(there) = &mut self.nodes.borrow_mut()[before].kind
        {
            there.push_str(&text);
            return;
        }
        let node = self.add(self.nameless.clone(), Kind::Text(text.to_string()));
        self.link(parent, node, next);
    }

    fn parent(&self, node: NodeId) -> Option<NodeId> {
        self.nodes.borrow()[node].parent
    }
}

impl TreeSink for Builder {
    type Handle = NodeId;
    type Output = Tree;
    type ElemName<'a> = Ref<'a, QualName>;

    fn finish(self) -> Tree {
        Tree { nodes: self.nodes.into_inner() }
    }

    fn parse_error(&self, _: Cow<'static, str>) {}

    fn get_document(&self) -> NodeId {
        DOCUMENT
    }

    fn elem_name<'a>(&'a self, target: &'a NodeId) -> Ref<'a, QualName> {
        let node = *target;
        Ref::map(self.nodes.borrow(), |nodes| &nodes[node].name)
    }

    fn create_element(&self, name: QualName, attributes: Vec<Attribute>, _: ElementFlags) -> NodeId {
        self.add(name, Kind::Element(attributes))
    }

    fn create_comment(&self, _: StrTendril) -> NodeId {
        self.add(self.nameless.clone(), Kind::Other)
    }

    fn create_pi(&self, _: StrTendril, _: StrTendril) -> NodeId {
        self.add(self.nameless.clone(), Kind::Other)
    }

    fn append(&self, parent: &NodeId, child: NodeOrText<NodeId>) {
        self.insert(*parent, child, None);
    }

    fn append_based_on_parent_node(&self, element: &NodeId, previous: &NodeId, child: NodeOrText<NodeId>) {
        match self.parent(*element) {
            Some(parent) => self.insert(parent, child, Some(*element)),
            None => self.insert(*previous, child, None),
        }
    }

    fn append_doctype_to_document(&self, _: StrTendril, _: StrTendril, _: StrTendril) {}

    /// What is in a template is not shown, so that it may hang below the template itself.
    fn get_template_contents(&self, target: &NodeId) -> NodeId {
        *target
    }

    fn same_node(&self, x: &NodeId, y: &NodeId) -> bool {
        x == y
    }

    fn set_quirks_mode(&self, _: QuirksMode) {}

    fn append_before_sibling(&self, sibling: &NodeId, new: NodeOrText<NodeId>) {
        if let Some(parent) = self.parent(*sibling) {
            self.insert(parent, new, Some(*sibling));
        }
    }

    fn add_attrs_if_missing(&self, target: &NodeId, attributes: Vec<Attribute>) {
        if let Kind::Element(there) = &mut self.nodes.borrow_mut()[*target].kind {
            for attribute in attributes {
                if there.iter().all(|a| a.name != attribute.name) {
                    there.push(attribute);
                }
            }
        }
    }

    fn remove_from_parent(&self, target: &NodeId) {
        self.unlink(*target);
    }

    fn reparent_children(&self, node: &NodeId, new_parent: &NodeId) {
        loop {
            let Some(child) = self.nodes.borrow()[*node].first else { return };
            self.link(*new_parent, child, None);
        }
    }
}
