//! The tasks of a job as its views show them: a list that costs little to show again after a few of them changed.

use std::ops::Index;
use std::sync::Arc;

use crate::view::TaskView;

/// Tasks that views share together. A view is made of what changed since the one before and of everything else as it
/// was, so that a large job does not hold up the others whenever it is shown.
const CHUNK: usize = 256;

/// Tasks of a job in the order of their submission.
#[derive(Clone, Debug, Default)]
pub struct TaskList {
    /// All but the last one are full.
    chunks: Vec<Arc<Vec<Arc<TaskView>>>>,
    length: usize,
}

impl TaskList {
    /// Tasks that it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The task before which so many others were submitted.
    #[must_use]
    pub fn get(&self, position: usize) -> Option<&Arc<TaskView>> {
        self.chunks.get(position / CHUNK)?.get(position % CHUNK)
    }

    /// In the order of their submission.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<TaskView>> + Clone {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Adds a task behind all others.
    pub(crate) fn push(&mut self, task: Arc<TaskView>) {
        if self.length.is_multiple_of(CHUNK) {
            self.chunks.push(Arc::new(Vec::with_capacity(CHUNK)));
        }
        if let Some(last) = self.chunks.last_mut() {
            Arc::make_mut(last).push(task);
            self.length += 1;
        }
    }

    /// Replaces a task; whoever shares the list keeps the one that was there.
    pub(crate) fn replace(&mut self, position: usize, task: Arc<TaskView>) {
        Arc::make_mut(&mut self.chunks[position / CHUNK])[position % CHUNK] = task;
    }
}

impl Index<usize> for TaskList {
    type Output = Arc<TaskView>;

    fn index(&self, position: usize) -> &Arc<TaskView> {
        &self.chunks[position / CHUNK][position % CHUNK]
    }
}

impl PartialEq for TaskList {
    fn eq(&self, other: &TaskList) -> bool {
        self.chunks == other.chunks
    }
}

impl FromIterator<Arc<TaskView>> for TaskList {
    fn from_iter<I: IntoIterator<Item = Arc<TaskView>>>(tasks: I) -> TaskList {
        let mut list = TaskList::default();
        for task in tasks {
            list.push(task);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prover_core::TaskId;

    use super::*;
    use crate::view::TaskState;

    fn mk_task(number: usize) -> Arc<TaskView> {
        Arc::new(TaskView {
            id: TaskId(number as u64),
            request_id: number.to_string().into(),
            task_type: "prove".into(),
            stage: "Prove".into(),
            marker: false,
            state: TaskState::Waiting,
            attempts: 0,
            started_at: None,
            ended_at: None,
            wall: None,
            device_time: Duration::ZERO,
            worker: None,
            failure: None,
            from_cache: false,
        })
    }

    fn ids(list: &TaskList) -> Vec<u64> {
        list.iter().map(|task| task.id.0).collect()
    }

    #[test]
    fn whoever_shares_a_list_keeps_what_is_replaced_in_it() {
        let count = 2 * CHUNK + 3;
        let mut list: TaskList = (0..count).map(mk_task).collect();
        let shown = list.clone();
        list.replace(CHUNK, mk_task(9_999));
        list.push(mk_task(count));
        assert_eq!(ids(&shown), (0..count as u64).collect::<Vec<_>>());
        assert_eq!((shown.len(), list.len()), (count, count + 1));
        assert_eq!((list[CHUNK].id.0, list[count].id.0), (9_999, count as u64));
        let changed: Vec<bool> = list
            .chunks
            .iter()
            .zip(&shown.chunks)
            .map(|(one, other)| !Arc::ptr_eq(one, other))
            .collect();
        assert_eq!(changed, [false, true, true], "what did not change is shared");
        assert_ne!(list, shown);
    }
}
