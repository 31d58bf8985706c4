use std::collections::HashMap;
use std::fmt;

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Number(f64),
    Operator(char),
}

pub struct Stack<T> {
    items: Vec<T>,
    names: HashMap<String, usize>,
}

impl<T: Clone + fmt::Debug> Stack<T> {
    pub fn new() -> Self {
        Stack { items: Vec::new(), names: HashMap::new() }
    }

    pub fn push(&mut self, name: &str, item: T) -> usize {
        let at = self.items.len();
        self.items.push(item);
        self.names.insert(name.to_string(), at);
        at
    }

    pub fn get(&self, name: &str) -> Option<&T> {
        match self.names.get(name) {
            Some(&at) if at < self.items.len() => Some(&self.items[at]),
            _ => None,
        }
    }
}

pub fn tokens(text: &str) -> Result<Vec<Token>, String> {
    text.split_whitespace()
        .map(|word| match word.parse::<f64>() {
            Ok(number) => Ok(Token::Number(number)),
            Err(_) if word.len() == 1 => Ok(Token::Operator(word.chars().next().unwrap())),
            Err(error) => Err(format!("{word}: {error}")),
        })
        .collect()
}
