//! A reader of the page's markup: strict, so that it finds what a browser forgives.

use std::collections::BTreeMap;

const VOID: [&str; 3] = ["meta", "br", "!DOCTYPE"];

/// One element of a page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Element {
    /// Its name.
    pub(crate) name: String,
    /// Names of the elements around it and its own, from the outside.
    pub(crate) path: String,
    /// Its `class`.
    pub(crate) class: String,
    /// All attributes, unescaped.
    pub(crate) attributes: BTreeMap<String, String>,
    /// Text directly in it, unescaped.
    pub(crate) text: String,
    /// All text in it, unescaped.
    pub(crate) inner: String,
    texts: Vec<Self>,
}

impl Element {
    /// An attribute that is a number.
    pub(crate) fn number(&self, name: &str) -> f64 {
        let value = self.attributes[name].parse::<f64>();
        value.unwrap_or_else(|_| panic!("{name} of {self:?}"))
    }

    /// The `text` elements in it.
    pub(crate) fn texts(&self) -> &[Self] {
        &self.texts
    }
}

/// Every element, in the order in which they end. Panics where one is not closed.
pub(crate) fn elements(html: &str) -> Vec<Element> {
    let mut open: Vec<Element> = Vec::new();
    let mut done = Vec::new();
    let mut rest = html;
    while let Some((text, after)) = rest.split_once('<') {
        if let Some(element) = open.last_mut() {
            element.text += &unescape(text);
        }
        open.iter_mut().for_each(|element| element.inner += &unescape(text));
        let (tag, after) = after.split_once('>').expect("a tag ends");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            let element = open.pop().expect("an element that is closed was opened");
            assert_eq!(element.name, name, "{}", element.path);
            if name == "text" {
                let svg = open.iter_mut().find(|outer| outer.name == "svg");
                svg.expect("text lies in a picture").texts.push(element.clone());
            }
            done.push(element);
            continue;
        }
        let element = opened(tag, open.last());
        if !VOID.contains(&element.name.as_str()) {
            open.push(element);
        }
    }
    assert!(open.is_empty(), "not closed: {open:?}");
    done
}

fn opened(tag: &str, outer: Option<&Element>) -> Element {
    let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
    let mut attributes = BTreeMap::new();
    while let Some((key, after)) = rest.split_once("=\"") {
        let (value, after) = after.split_once('"').expect("an attribute ends");
        attributes.insert(key.trim().to_owned(), unescape(value));
        rest = after;
    }
    Element {
        name: name.into(),
        path: outer.map_or_else(String::new, |outer| format!("{} ", outer.path)) + name,
        class: attributes.get("class").cloned().unwrap_or_default(),
        attributes,
        ..Element::default()
    }
}

fn unescape(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    text.replace("&amp;", "&")
}
