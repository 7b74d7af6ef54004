//! Solves prompts from the tasks' definitions alone, by other means than the generators use, and compares rows.

use std::collections::HashMap;

use xlstm_pipeline::tasks::Example;

/// What is wrong with a row of `task`, if anything.
pub(crate) fn check(task: &str, row: &Example) -> Result<(), String> {
    match task {
        "mqar" => check_recall(row),
        "listops" => check_list_operations(row),
        _ => check_formal(task, row),
    }
}

/// The prompt of a formal-language row and its targets.
pub(crate) fn prompt_and_answer(row: &Example) -> Result<(&[u16], Vec<u16>), String> {
    let first = row.targets.iter().position(Option::is_some).ok_or("nothing is scored")?;
    let answer: Vec<u16> = row.targets[first..].iter().map_while(|target| *target).collect();
    if row.targets[first + answer.len()..].iter().any(Option::is_some) {
        return Err("scored positions are not in one piece".into());
    }
    if row.length != first + answer.len() || row.input_ids[first + 1..].iter().any(|&id| id != 0) {
        return Err("the row is not prompt, masked answer, padding".into());
    }
    let prompt = &row.input_ids[..=first];
    if prompt.contains(&0) { Err("the prompt holds padding".into()) } else { Ok((prompt, answer)) }
}

fn check_formal(task: &str, row: &Example) -> Result<(), String> {
    let (prompt, answer) = prompt_and_answer(row)?;
    let right = solve(task, prompt)?;
    if answer == right { Ok(()) } else { Err(format!("{prompt:?}: expected {right:?}, found {answer:?}")) }
}

/// The answer to a prompt of a formal-language task.
pub(crate) fn solve(task: &str, prompt: &[u16]) -> Result<Vec<u16>, String> {
    let string = || match prompt.split_last() {
        Some((1, string)) if string.iter().all(|id| *id > 1) => Ok(string.to_vec()),
        _ => Err(format!("expected a string and ACT, found {prompt:?}")),
    };
    Ok(match task {
        "bucket_sort" => {
            let mut sorted = prompt.to_vec();
            sorted.sort_unstable();
            sorted
        }
        "cycle_nav" => {
            let moves = prompt.iter().map(|id| match id {
                1 => 0,
                2 => 1,
                3 => -1,
                _ => 1000,
            });
            vec![4 + moves.sum::<i64>().rem_euclid(5) as u16]
        }
        "even_pairs" => vec![if prompt.first() == prompt.last() { 1 } else { 2 }],
        "parity" => vec![1 + prompt.iter().fold(0, |odd, id| odd ^ (id - 1))],
        "majority" => vec![most_frequent(prompt).0],
        "majority_count" => vec![most_frequent(prompt).1.min(63)],
        "missing_duplicate" => {
            let (whole, masked) = prompt.split_at(prompt.len() / 2);
            let different: Vec<_> = whole.iter().zip(masked).filter(|(a, b)| a != b).collect();
            match different[..] {
                [(&missing, 1)] if prompt.len().is_multiple_of(2) && !whole.contains(&1) => vec![missing],
                _ => return Err(format!("not one mask in the repetition: {prompt:?}")),
            }
        }
        "odds_first" => {
            let (odd, even): (Vec<_>, Vec<_>) = (1..).zip(string()?).partition(|(place, _)| place % 2 == 1);
            odd.into_iter().chain(even).map(|(_, id)| id).collect()
        }
        "repetition" => string()?,
        "reverse_string" => {
            let mut reversed = string()?;
            reversed.reverse();
            reversed
        }
        "set" => string()?.into_iter().fold(Vec::new(), |mut seen, id| {
            if !seen.contains(&id) {
                seen.push(id);
            }
            seen
        }),
        "stack_manipulation" => stack(&string()?)?,
        "mod_arithmetic" => {
            let numbers = prompt.iter().step_by(2).filter(|&&id| id >= 5).count();
            if numbers != prompt.len() / 2 {
                return Err(format!("numbers and operators do not alternate: {prompt:?}"));
            }
            vec![5 + value_before_equals(prompt, 5)?]
        }
        "mod_arithmetic_brackets" => vec![7 + value_before_equals(prompt, 7)?],
        "mod_arithmetic_brackets_nomult" if prompt.contains(&3) => return Err("a product".into()),
        "mod_arithmetic_brackets_nomult" => vec![7 + value_before_equals(prompt, 7)?],
        "solve_equation" => vec![9 + solution(prompt)?],
        _ => return Err(format!("no rule for {task}")),
    })
}

/// The most frequent id, the smallest of several, and how often it stands there.
fn most_frequent(prompt: &[u16]) -> (u16, u16) {
    let mut sorted = prompt.to_vec();
    sorted.sort_unstable();
    let mut best = (0, 0);
    for run in sorted.chunk_by(|a, b| a == b) {
        if run.len() > usize::from(best.1) {
            best = (run[0], run.len() as u16);
        }
    }
    best
}

fn stack(string: &[u16]) -> Result<Vec<u16>, String> {
    let initial = string.iter().take_while(|id| (3..7).contains(*id)).count();
    let mut stack = string[..initial].to_vec();
    for &operation in &string[initial..] {
        match operation {
            2 => drop(stack.pop()),
            7..=10 => stack.push(operation - 4),
            _ => return Err(format!("{operation} among the operations")),
        }
    }
    let known = initial > 0 && initial < string.len() && !stack.is_empty();
    if known { Ok(stack) } else { Err(format!("a stack or operations are missing: {string:?}")) }
}

/// Value modulo 5 of everything before the one `=` at the end.
fn value_before_equals(prompt: &[u16], zero: u16) -> Result<u16, String> {
    match prompt.split_last() {
        Some((4, expression)) => value(expression, zero),
        _ => Err(format!("no `=` at the end: {prompt:?}")),
    }
}

/// A parser with precedence, unary minus and brackets: more than the grammars need.
struct Parser<'a> {
    tokens: &'a [u16],
    at: usize,
    zero: u16,
}

fn value(tokens: &[u16], zero: u16) -> Result<u16, String> {
    let mut parser = Parser { tokens, at: 0, zero };
    let sum = parser.sum()?;
    if parser.at == tokens.len() {
        Ok(sum as u16)
    } else {
        Err(format!("rest after {} of {tokens:?}", parser.at))
    }
}

impl Parser<'_> {
    fn peek(&self) -> u16 {
        self.tokens.get(self.at).copied().unwrap_or(0)
    }

    fn sum(&mut self) -> Result<i32, String> {
        let mut sum = self.product()?;
        while let sign @ (1 | 2) = self.peek() {
            self.at += 1;
            let term = self.product()?;
            sum = if sign == 1 { sum + term } else { sum - term }.rem_euclid(5);
        }
        Ok(sum)
    }

    fn product(&mut self) -> Result<i32, String> {
        let mut product = self.factor()?;
        while self.peek() == 3 {
            self.at += 1;
            product = (product * self.factor()?).rem_euclid(5);
        }
        Ok(product)
    }

    fn factor(&mut self) -> Result<i32, String> {
        let id = self.peek();
        self.at += 1;
        match id {
            2 => Ok((-self.factor()?).rem_euclid(5)),
            id if id >= self.zero && id < self.zero + 5 => Ok(i32::from(id - self.zero)),
            5 => {
                let inner = self.sum()?;
                self.at += 1;
                if self.tokens.get(self.at - 1) == Some(&6) { Ok(inner) } else { Err("no `)`".into()) }
            }
            _ => Err(format!("{id} at {} of {:?}", self.at - 1, self.tokens)),
        }
    }
}

/// The one number that makes the equation true.
fn solution(prompt: &[u16]) -> Result<u16, String> {
    let [expression @ .., 4, right, 8] = prompt else { return Err(format!("no equation: {prompt:?}")) };
    if expression.iter().filter(|&&id| id == 7).count() != 1 || expression.contains(&3) {
        return Err(format!("not one x, or a product: {prompt:?}"));
    }
    let with =
        |x: u16| -> Vec<u16> { expression.iter().map(|&id| if id == 7 { 9 + x } else { id }).collect() };
    let solutions: Vec<u16> = (0..5).filter(|&x| value(&with(x), 9) == Ok(right - 9)).collect();
    match solutions[..] {
        [x] => Ok(x),
        _ => Err(format!("solutions {solutions:?}: {prompt:?}")),
    }
}

/// MQAR with a vocabulary of 8192: pairs, then keys in even places and zeros.
fn check_recall(row: &Example) -> Result<(), String> {
    let ids = &row.input_ids;
    let pairs = ids.chunks(2).take_while(|pair| pair[1] != 0).count();
    let memory: HashMap<u16, u16> = ids[..2 * pairs].chunks(2).map(|pair| (pair[0], pair[1])).collect();
    let values: std::collections::HashSet<_> = memory.values().collect();
    let in_range = memory.iter().all(|(key, value)| (1..4096).contains(key) && (4096..8192).contains(value));
    if memory.len() != pairs || values.len() != pairs || !in_range || row.length != ids.len() {
        return Err("keys or values are repeated or out of their ranges".into());
    }
    let mut asked = std::collections::HashSet::new();
    for (at, (&id, &target)) in ids.iter().zip(&row.targets).enumerate() {
        let question = at >= 2 * pairs && id != 0;
        if question && (at % 2 == 1 || !asked.insert(id)) {
            return Err(format!("a key at an odd place, or asked twice, at {at}"));
        }
        if target != question.then(|| memory.get(&id).copied()).flatten() || (question && target.is_none()) {
            return Err(format!("position {at}: {id} has the target {target:?}"));
        }
    }
    let expected = pairs.min((ids.len() - 2 * pairs) / 2);
    if asked.len() == expected { Ok(()) } else { Err(format!("{} questions, not {expected}", asked.len())) }
}

/// ListOps: a stack of open operators.
fn check_list_operations(row: &Example) -> Result<(), String> {
    let ids = &row.input_ids[..row.length];
    let scored: Vec<_> = (0..).zip(&row.targets).filter_map(|(at, target)| Some((at, (*target)?))).collect();
    let [(at, class)] = scored[..] else { return Err(format!("{} scored positions", scored.len())) };
    let right = list_value(ids)?;
    if at + 1 != row.length || row.input_ids[row.length..].iter().any(|&id| id != 0) {
        return Err("the class does not stand at the last token, or no padding follows".into());
    }
    if class == right { Ok(()) } else { Err(format!("expected {right}, found {class}: {ids:?}")) }
}

/// The value of a list.
pub(crate) fn list_value(ids: &[u16]) -> Result<u16, String> {
    let mut open: Vec<(u16, Vec<f64>)> = vec![(0, Vec::new())];
    for &id in ids {
        let value = match id {
            1..=10 => f64::from(id - 1),
            11..=14 => {
                open.push((id, Vec::new()));
                continue;
            }
            15 => operate(open.pop().ok_or("a bracket too many")?)?,
            _ => return Err(format!("{id} in a list")),
        };
        open.last_mut().ok_or("a bracket too many")?.1.push(value);
    }
    match &open[..] {
        [(0, values)] if values.len() == 1 => Ok(values[0] as u16),
        _ => Err(format!("brackets do not match: {ids:?}")),
    }
}

fn operate((operator, mut values): (u16, Vec<f64>)) -> Result<f64, String> {
    if !(2..=10).contains(&values.len()) {
        return Err(format!("{} arguments", values.len()));
    }
    values.sort_by(f64::total_cmp);
    let median = |sorted: &[f64]| (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
    Ok(match operator {
        11 => values[0],
        12 => values[values.len() - 1],
        13 => median(&values).trunc(),
        _ => values.iter().sum::<f64>() % 10.0,
    })
}
