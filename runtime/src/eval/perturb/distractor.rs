//! Sentences that have nothing to do with a question. None has a number, so that no sum changes.

use super::Draws;
use super::units::is_han;

const ENGLISH: [&str; 12] = [
    "The library at the corner of the street was closed for painting that week.",
    "A neighbour had borrowed the garden ladder and forgotten to return it.",
    "The radio in the kitchen was playing an old song about the sea.",
    "On the way home the bus took a longer route because of the market.",
    "Somebody had left a blue umbrella in the hall.",
    "The local football team was training in the rain.",
    "A cat was asleep on the bench beside the fountain.",
    "The bakery around the corner had started to sell rye bread.",
    "The museum was showing photographs of lighthouses.",
    "In the evening the street lamps came on a little late.",
    "A letter from an aunt in Lisbon was lying on the table.",
    "The calendar on the wall showed a picture of a mountain lake.",
];

const CHINESE: [&str; 12] = [
    "街角的图书馆那个星期正在粉刷,没有开门。",
    "邻居借走了花园里的梯子,忘了还回来。",
    "厨房里的收音机正放着一首关于大海的老歌。",
    "回家的路上,公共汽车因为集市绕了远路。",
    "有人把一把蓝色的雨伞落在了走廊里。",
    "当地的足球队正在雨中训练。",
    "喷泉旁边的长椅上睡着一只猫。",
    "拐角处的面包店开始卖黑麦面包了。",
    "博物馆正在展出灯塔的照片。",
    "傍晚的路灯亮得稍微晚了一些。",
    "桌上放着姑妈从远方寄来的一封信。",
    "墙上的日历印着一幅高山湖泊的图画。",
];

/// `text` with a sentence put in at its start or between two of its sentences, never at its end, where questions are.
pub(super) fn insert(text: &str, draws: &mut Draws) -> Option<String> {
    if text.trim().is_empty() {
        return None;
    }
    let letters = text.chars().filter(|c| c.is_alphabetic()).count();
    let chinese = text.chars().filter(|c| is_han(*c)).count() * 3 > letters;
    let places = places(text);
    let at = places[draws.below(places.len())];
    Some(if chinese {
        format!("{}{}{}", &text[..at], CHINESE[draws.below(CHINESE.len())], &text[at..])
    } else {
        format!("{}{} {}", &text[..at], ENGLISH[draws.below(ENGLISH.len())], &text[at..])
    })
}

/// The start, and where a sentence begins after another one has ended.
fn places(text: &str) -> Vec<usize> {
    let mut places = vec![0];
    for (at, c) in text.char_indices() {
        let end = at + c.len_utf8();
        let rest = &text[end..];
        let blank = rest.starts_with(' ') && matches!(c, '.' | '!' | '?');
        // A full stop in an abbreviation is followed by a small letter or a number, or ends a single capital.
        let next = rest.trim_start().chars().next();
        let initial = text[..at].chars().next_back().is_some_and(char::is_uppercase);
        let begins = next.is_some_and(|c| c.is_uppercase() || is_han(c));
        if blank && begins && !initial {
            places.push(end + (rest.len() - rest.trim_start().len()));
        } else if matches!(c, '。' | '!' | '?') && !rest.trim().is_empty() {
            places.push(end);
        }
    }
    places
}
