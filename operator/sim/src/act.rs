//! Executing an operator's action: as the API server would, and with what the laws of the
//! simulation say about it.

use crds::names::{FAILED_ANNOTATION, PROMOTED_ANNOTATION};
use crds::{DevicePluginConfig, DevicePluginNode};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::ConfigMap;
use operator_core::action::{Kind, Write};
use operator_core::seen::{
    Identity, SeenConfigMap, SeenDaemonSet, SeenNode, SeenPod, SeenRevision,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::Refusal;
use crate::api::Shelved;
use crate::cache::Cache;
use crate::operator::{Answer, Caches};
use crate::story::tell;
use crate::world::World;

impl World {
    /// Does one write.
    pub(crate) fn act(&mut self, at: usize, write: &Write) -> Result<(), Refusal> {
        self.check_write(at, write);
        let result = self.write(at, write);
        if result.is_ok() {
            self.written(at, write);
        }
        if self.story.kept {
            self.tell_write(at, write, result);
        }
        result
    }

    fn write(&mut self, at: usize, write: &Write) -> Result<(), Refusal> {
        match write {
            Write::SetFinalizers { on, finalizers } => {
                let answer = self.api.change::<DevicePluginConfig>(on, |config| {
                    config.metadata.finalizers = Some(finalizers.clone());
                });
                self.keep(at, answer, |caches| &mut caches.configs)
            }
            Write::CreateRevision { object, .. } => {
                self.make::<ControllerRevision, SeenRevision>(at, object, |caches| {
                    &mut caches.revisions
                })
            }
            Write::CreateConfigMap { object, .. } => {
                self.make::<ConfigMap, SeenConfigMap>(at, object, |caches| &mut caches.config_maps)
            }
            Write::CreateDaemonSet { object, .. } => {
                self.make::<DaemonSet, SeenDaemonSet>(at, object, |caches| &mut caches.daemon_sets)
            }
            Write::PatchDaemonSet { on, template } => {
                let answer = self.api.change::<SeenDaemonSet>(on, |set| {
                    if set.template != *template || !set.on_delete {
                        set.template.clone_from(template);
                        set.on_delete = true;
                        set.is_observed = false;
                    }
                });
                self.keep(at, answer, |caches| &mut caches.daemon_sets)
            }
            Write::CreateNodeObject { object } => {
                let answer = self.api.create((**object).clone());
                self.keep(at, answer, |caches| &mut caches.node_objects)
            }
            Write::PatchNodeObject { on, spec } => {
                let answer = self.api.change::<DevicePluginNode>(on, |object| {
                    object.spec = (**spec).clone();
                });
                self.keep(at, answer, |caches| &mut caches.node_objects)
            }
            Write::LabelNode { on, labels } => {
                let answer = self.api.change::<SeenNode>(on, |node| {
                    for (key, value) in labels {
                        match value {
                            Some(value) => drop(node.labels.insert(key.clone(), value.clone())),
                            None => drop(node.labels.remove(key)),
                        }
                    }
                });
                self.keep(at, answer, |caches| &mut caches.nodes)
            }
            Write::AnnotateRevision { on, annotations } => {
                let answer = self.api.change::<SeenRevision>(on, |revision| {
                    if let Some(failed) = annotations.get(FAILED_ANNOTATION) {
                        revision.failed = Some(failed.clone()).filter(|one| !one.is_empty());
                    }
                    if let Some(promoted) = annotations.get(PROMOTED_ANNOTATION) {
                        revision.promoted = promoted.parse().ok();
                    }
                });
                self.keep(at, answer, |caches| &mut caches.revisions)
            }
            Write::LabelPool { .. } => Ok(()),
            Write::Delete { kind, on } => self.delete(at, *kind, on),
        }
    }

    fn keep<T: Shelved>(
        &mut self,
        at: usize,
        answer: Answer<T>,
        cache: fn(&mut Caches) -> &mut Cache<T>,
    ) -> Result<(), Refusal> {
        let object = answer?;
        self.answered(at, |caches| {
            cache(caches).answer(object);
        });
        Ok(())
    }

    /// The object as the API server would keep it.
    fn make<K: DeserializeOwned, T: Shelved + From<K>>(
        &mut self,
        at: usize,
        object: &Value,
        cache: fn(&mut Caches) -> &mut Cache<T>,
    ) -> Result<(), Refusal> {
        let wire: K = serde_json::from_value(object.clone()).map_err(|_| Refusal::Failed)?;
        let answer = self.api.create(T::from(wire));
        self.keep(at, answer, cache)
    }

    fn delete(&mut self, at: usize, kind: Kind, on: &Identity) -> Result<(), Refusal> {
        let uid_only = Identity {
            version: String::new(),
            ..on.clone()
        };
        match kind {
            Kind::NodeObject => {
                self.api.remove::<DevicePluginNode>(&uid_only)?;
                self.answered(at, |caches| caches.node_objects.bury(on));
            }
            Kind::Revision => {
                self.api.remove::<SeenRevision>(&uid_only)?;
                self.answered(at, |caches| caches.revisions.bury(on));
            }
            Kind::ConfigMap => {
                self.api.remove::<SeenConfigMap>(&uid_only)?;
                self.answered(at, |caches| caches.config_maps.bury(on));
            }
            Kind::DaemonSet => {
                self.api.remove::<SeenDaemonSet>(&uid_only)?;
                self.answered(at, |caches| caches.daemon_sets.bury(on));
            }
            Kind::Pod => {
                self.delete_failed_pod(&uid_only)?;
                self.answered(at, |caches| caches.pods.bury(on));
            }
            Kind::Config | Kind::Pool | Kind::Node => return Err(Refusal::Failed),
        }
        Ok(())
    }

    /// A pod that has ended goes at once, any other when its kubelet has stopped it.
    fn delete_failed_pod(&mut self, on: &Identity) -> Result<(), Refusal> {
        let pod = self.api.pods.get(&on.name).ok_or(Refusal::NotFound)?;
        match pod.phase == "Failed" {
            true => self.api.remove::<SeenPod>(on),
            false => {
                self.delete_pod(on);
                Ok(())
            }
        }
    }

    fn tell_write(&mut self, at: usize, write: &Write, result: Result<(), Refusal>) {
        let refused = match result {
            Ok(()) => String::new(),
            Err(refusal) => format!(": {refusal:?}"),
        };
        let what = self.in_words(write);
        tell!(self, format!("op{at}"), "{what}{refused}");
    }

    fn in_words(&self, write: &Write) -> String {
        let named = |revision: &String| self.nick(revision);
        let name = write.name();
        match write {
            Write::LabelNode { labels, .. } => {
                let labels: Vec<_> = labels
                    .iter()
                    .map(|(key, value)| {
                        let word = if key.contains("/stage.") { "G" } else { "R" };
                        format!("{word}={}", value.as_ref().map_or("-".to_owned(), named))
                    })
                    .collect();
                format!("labels {name} {}", labels.join(" "))
            }
            Write::PatchNodeObject { spec, .. } => {
                let standby = spec.standby.as_ref().map_or("-".to_owned(), named);
                let baseline = spec.baseline.as_ref();
                let baseline = baseline.map_or("-".to_owned(), |one| self.nick(&one.revision));
                let active = named(&spec.active);
                format!("writes {name} active={active} standby={standby} baseline={baseline}")
            }
            Write::CreateNodeObject { object } => {
                let active = named(&object.spec.active);
                let standby = object.spec.standby.as_ref().map_or("-".to_owned(), named);
                format!("makes {name} active={active} standby={standby}")
            }
            Write::AnnotateRevision { annotations, .. } => {
                format!(
                    "annotates {} {annotations:?}",
                    self.nick(&revision_of(name))
                )
            }
            Write::SetFinalizers { .. }
            | Write::CreateRevision { .. }
            | Write::CreateConfigMap { .. }
            | Write::CreateDaemonSet { .. }
            | Write::PatchDaemonSet { .. }
            | Write::LabelPool { .. }
            | Write::Delete { .. } => {
                let (verb, kind) = (write.verb().as_str(), write.kind().as_str());
                let nick = self.nick(&revision_of(name));
                format!("{verb} {kind} {name} ({nick})")
            }
        }
    }
}

/// The revision in the name of an object that was made for one.
pub fn revision_of(name: &str) -> String {
    name.rsplit_once('-')
        .map(|(_, revision)| revision.to_owned())
        .unwrap_or_default()
}
