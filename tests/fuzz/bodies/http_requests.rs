//! The body of a request to the server of completions.

use xlstm_trainer::serve::CompletionRequest;

pub(crate) fn run(data: &[u8]) {
    if let Ok(request) = CompletionRequest::parse(data) {
        assert!(
            request.temperature >= 0.0
                && request.top_p > 0.0
                && request.stop.iter().all(|stop| !stop.is_empty())
        );
    }
}
