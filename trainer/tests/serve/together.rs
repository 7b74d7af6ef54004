//! Answers that come in pieces, and requests that are answered together.

use serde_json::{Value, json};

use crate::server::{Connection, setup, with};

#[test]
fn a_stream_is_the_whole_answer_in_pieces() {
    let (_folder, _model, server) = setup();
    let prompts = json!(["The quick brown fox", "naïve 日本", "a"]);
    let plain = json!({"prompt": prompts, "max_tokens": 12, "temperature": 1.0, "seed": 5});
    let whole = server.complete(&plain);
    // A text that ends the second and not the first.
    let second = whole["choices"][1]["text"].as_str().unwrap();
    let stop: String = second.chars().skip(3).take(4).collect();
    for changes in [
        json!({}),
        json!({"echo": true}),
        json!({"stop": [stop, "never written"]}),
        json!({"stream_options": {"include_usage": true}}),
        json!({"max_tokens": 0}),
        json!({"max_tokens": 1, "temperature": 0}),
    ] {
        let mut asked = with(&plain, &changes);
        asked.as_object_mut().unwrap().remove("stream_options");
        let whole = server.complete(&asked);
        let events =
            Connection::new(&server).stream(&with(&with(&plain, &changes), &json!({"stream": true})));
        let (last, events) = events.split_last().unwrap();
        assert_eq!(last, "[DONE]");
        let mut texts = vec![String::new(); 3];
        let mut reasons = vec![None; 3];
        let mut used = None;
        for event in events {
            let event: Value = serde_json::from_str(event).unwrap();
            assert_eq!(event["object"], "text_completion");
            for choice in event["choices"].as_array().unwrap() {
                let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
                assert!(reasons[index].is_none(), "a text that has ended goes on: {event}");
                texts[index] += choice["text"].as_str().unwrap();
                reasons[index] = choice["finish_reason"].as_str().map(str::to_owned);
            }
            used = used.or(event.get("usage").cloned());
        }
        for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            assert_eq!(choice["text"], texts[index].as_str(), "{changes}");
            assert_eq!(choice["finish_reason"].as_str(), reasons[index].as_deref(), "{changes}");
        }
        let wanted = changes.get("stream_options").map(|_| whole["usage"].clone());
        assert_eq!(used, wanted, "{changes}");
    }
    for (changes, named) in [
        (json!({"logprobs": 1}), "`stream`"),
        (json!({"stream_options": {"include_usage": 1}}), "`stream_options`"),
        (json!({"prompt": []}), "`prompt`"),
    ] {
        let body = with(&with(&plain, &json!({"stream": true})), &changes);
        let (status, answer) = server.post("/v1/completions", &body);
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(status == 400 && message.contains(named), "{message}");
    }
    let (status, _) =
        server.post("/v1/completions", &json!({"prompt": "a", "stream_options": {"include_usage": true}}));
    assert_eq!(status, 400);
}

#[test]
fn requests_that_wait_are_scored_together_and_each_gets_its_own_answer() {
    let (_folder, _model, server) = setup();
    let bodies: Vec<Value> = (0..40)
        .map(|number| {
            let prompt = "one two three ".repeat(number % 7 + 1);
            match number {
                // Refused, among the others.
                9 => json!({"prompt": [60_000], "logprobs": 1, "temperature": 0, "max_tokens": 0}),
                17 => json!({"prompt": prompt, "max_tokens": 5, "temperature": 0}),
                _ => json!({
                    "prompt": [prompt, format!("{number} four")], "logprobs": number % 3, "temperature": 0,
                    "max_tokens": number % 2, "echo": true,
                }),
            }
        })
        .collect();
    let alone: Vec<(u16, Value)> = bodies.iter().map(|body| server.post("/v1/completions", body)).collect();
    // While this is generated, the others arrive.
    let together: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let server = &server;
        let first = scope.spawn(|| server.complete(&json!({"prompt": "a", "max_tokens": 300})));
        std::thread::sleep(std::time::Duration::from_millis(50));
        let asked: Vec<_> =
            bodies.iter().map(|body| scope.spawn(|| server.post("/v1/completions", body))).collect();
        first.join().unwrap();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    for (index, ((status, alone), (found_status, found))) in alone.iter().zip(&together).enumerate() {
        assert_eq!(status, found_status, "{index}");
        let logs = |answer: &Value, choice: usize| -> Vec<Option<f64>> {
            let logs = answer["choices"][choice]["logprobs"]["token_logprobs"].as_array();
            logs.into_iter().flatten().map(Value::as_f64).collect()
        };
        let choices = |answer: &Value| answer["choices"].as_array().map_or(0, Vec::len);
        assert_eq!(choices(alone), choices(found));
        for choice in 0..choices(alone) {
            assert_eq!(alone["choices"][choice]["text"], found["choices"][choice]["text"], "{index}");
            let (expected, logs) = (logs(alone, choice), logs(found, choice));
            assert_eq!(expected.len(), logs.len(), "{index}");
            for (a, b) in expected.iter().zip(&logs) {
                let close = match (a, b) {
                    (Some(a), Some(b)) => (a - b).abs() < 1e-4,
                    (a, b) => a == b,
                };
                assert!(close, "{index}: {a:?} {b:?}");
            }
        }
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_stream_is_not_generated_for() {
    let (_folder, _model, server) = setup();
    let mut connection = Connection::new(&server);
    let body = json!({"prompt": "a", "max_tokens": 100_000, "temperature": 1, "stream": true});
    connection.ask("/v1/completions", body.to_string().as_bytes());
    while !connection.line().starts_with("data: ") {}
    drop(connection);
    // The one thread that owns the model is free again, long before the text would have ended.
    server.complete(&json!({"prompt": "b", "max_tokens": 1}));
}

#[test]
fn a_request_begins_and_ends_while_another_one_goes_on() {
    let (_folder, _model, server) = setup();
    let long = json!({"prompt": ["a", "one two three"], "max_tokens": 600, "temperature": 1.0, "seed": 3});
    let short = |seed: u64| json!({"prompt": "Once upon", "max_tokens": 6, "temperature": 1.0, "seed": seed, "logprobs": 1});
    let alone = server.complete(&long);
    let expected: Vec<Value> = (0..4).map(|seed| server.complete(&short(seed))).collect();
    std::thread::scope(|scope| {
        let server = &server;
        let long = scope.spawn(|| server.complete(&long));
        std::thread::sleep(std::time::Duration::from_millis(50));
        for (seed, expected) in (0..4).zip(&expected) {
            // A stream and a whole answer, one after the other.
            let found = server.complete(&short(seed));
            let choice = |answer: &Value| answer["choices"][0].clone();
            assert_eq!(choice(&found)["text"], choice(expected)["text"], "{seed}");
            let mut asked = with(&short(seed), &json!({"stream": true}));
            asked.as_object_mut().unwrap().remove("logprobs");
            let events = Connection::new(server).stream(&asked);
            let texts = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
            let streamed: String =
                texts.filter_map(|event| Some(event["choices"][0]["text"].as_str()?.to_owned())).collect();
            assert_eq!(choice(expected)["text"], streamed.as_str(), "{seed}");
            assert!(seed > 0 || !long.is_finished(), "two short texts waited for the long one");
        }
        let found = long.join().unwrap();
        for index in 0..2 {
            assert_eq!(found["choices"][index]["text"], alone["choices"][index]["text"]);
        }
        assert_eq!(found["usage"], alone["usage"]);
    });
}
