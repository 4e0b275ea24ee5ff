//! How it goes with asking Elasticsearch about the lead, and who has it.

use std::time::Duration;

use tokio::time::timeout;
use tracing::{error, info, warn};

use super::Setting;
use crate::commands::Failure;
use crate::elastic::work::WorkError;
use crate::leader::candidate::Answer;
use crate::leader::{Content, Head};
use crate::output::Chain;
use crate::telemetry::{End, Reason, Told};

/// How long one answer is waited for: several fit into a lease.
const PATIENCE: Duration = Duration::from_secs(3);

/// Waits for answers.
#[derive(Default)]
pub(super) struct Asking {
    was_answered: bool,
    /// How it has failed since the last answer.
    failing: Option<&'static str>,
    told: Told,
    leader: Option<String>,
}

impl Asking {
    /// Waits for an answer. Whatever may pass is [`Answer::Unknown`].
    pub(super) async fn ask(
        &mut self,
        answer: impl Future<Output = Result<Answer<Content>, WorkError>>,
        setting: &Setting,
    ) -> Result<Answer<Content>, Failure> {
        const PASSES: &str = "no word about who leads";
        const STAYS: &str = "cannot lead";
        // While there is a run, what it sends says how Elasticsearch answers.
        let end = Some(&setting.stats.elasticsearch).filter(|_| setting.stats.lead.is_waiting());
        let (what, reason, words, mend) = match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => {
                self.was_answered = true;
                self.failing = None;
                if let Some(lasted) = end.and_then(End::answered) {
                    info!(after = ?lasted, "Elasticsearch answers again");
                }
                return Ok(answer);
            }
            Err(_) => {
                setting.client.turn_to_the_next_host();
                let words = format!("none within {PATIENCE:?}");
                (PASSES, Reason::Unreachable, words, None)
            }
            Ok(Err(failed)) => {
                let what = if failed.is_transient() { PASSES } else { STAYS };
                if what == STAYS && !self.was_answered {
                    return Err(failed.into());
                }
                let words = Chain(&failed).to_string();
                (what, failed.reason(), words, failed.mend())
            }
        };
        if let Some(end) = end {
            end.failed(reason, &format!("{what}: {words}"));
        }
        if self.failing.replace(what) != Some(what) {
            self.told.forget();
        }
        if self.told.once_a_minute() {
            if what == STAYS {
                error!(mend, "cannot lead, trying again: {words}");
            } else {
                warn!(mend, "no word about who leads, trying again: {words}");
            }
        }
        Ok(Answer::Unknown)
    }

    pub(super) fn say_who_leads(&mut self, head: &Head<Content>) {
        if let Some(leader) = &head.leader
            && self.leader.as_ref() != Some(leader)
        {
            info!("standing by: {leader} leads");
        }
        self.leader.clone_from(&head.leader);
    }
}
