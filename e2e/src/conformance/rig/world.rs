//! What is done to a plugin's world: its directories and devices, by commands of the driver.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::process::Command;

use super::{Rig, free_port};
use crate::conformance::driver::{Action, Feature};
use crate::conformance::hook::Hook;
use crate::conformance::process::PluginProcess;
use crate::conformance::verdict::{Failed, Verdict};

/// How long a command of the caller's may take.
const COMMAND: Duration = Duration::from_secs(60);

impl Rig {
    /// Starts the plugin in another way from now on.
    ///
    /// # Errors
    /// When the driver does not know it.
    pub fn feature(&mut self, feature: Feature) -> Verdict {
        let changed = self.driver.with(feature);
        self.driver = changed.ok_or_else(|| Failed::Missing(format!("feature `{feature}`")))?;
        if feature == Feature::PreStart {
            self.hook = Some(Hook::make(&self.home.join("h"))?);
        }
        Ok(())
    }

    /// Fails unless something can be done.
    ///
    /// # Errors
    /// When the driver does not know it.
    pub fn needs(&self, action: Action) -> Verdict {
        if self.can(action) {
            return Ok(());
        }
        Err(Failed::Missing(format!("action `{action}`")))
    }

    /// Whether something can be done.
    pub fn can(&self, action: Action) -> bool {
        self.driver.actions.contains_key(&action)
    }

    /// Where a host path of the plugin's is here.
    pub fn here(&self, host_path: &str) -> PathBuf {
        let places = self.places(self.starts);
        for (from, to) in &self.driver.host_paths {
            if let Some(rest) = host_path.strip_prefix(from.as_str()) {
                let to = self.driver.filled(to, &places);
                return PathBuf::from(format!("{to}{rest}"));
            }
        }
        PathBuf::from(host_path)
    }

    /// What the placeholders stand for, for what belongs to an instance of the plugin.
    fn places(&self, instance: usize) -> BTreeMap<String, String> {
        let at = |name: &str| self.home.join(name).to_string_lossy().into_owned();
        let mut places = BTreeMap::from([
            ("home".to_owned(), at("")),
            ("plugin_dir".to_owned(), at("p")),
            ("pod_resources_dir".to_owned(), at("r")),
            ("cdi_dir".to_owned(), at("c")),
            ("log".to_owned(), self.log(instance).display().to_string()),
            ("instance".to_owned(), instance.to_string()),
            ("count".to_owned(), "4".to_owned()),
            ("port".to_owned(), self.port.to_string()),
        ]);
        if let Ok(program) = std::env::current_exe() {
            places.insert("suite".to_owned(), program.to_string_lossy().into_owned());
        }
        if let Some(hook) = &self.hook {
            places.insert(
                "hook".to_owned(),
                hook.path().to_string_lossy().into_owned(),
            );
        }
        places.insert("resource".to_owned(), self.driver.resource.clone());
        if let Some(home) = places.get_mut("home") {
            // Joined with nothing it ends in a slash.
            *home = home.trim_end_matches('/').to_owned();
        }
        places
    }

    fn log(&self, number: usize) -> PathBuf {
        self.home.join(format!("plugin-{number}.log"))
    }

    /// Has something done to a device.
    ///
    /// # Errors
    /// When the driver does not know how, or its command fails.
    pub async fn act(&self, action: Action, device: usize) -> Verdict {
        self.act_with(action, &[("device", &device.to_string())])
            .await
    }

    /// Has something done, with more placeholders.
    ///
    /// # Errors
    /// When the driver does not know how, or its command fails.
    pub async fn act_with(&self, action: Action, more: &[(&str, &str)]) -> Verdict {
        self.needs(action)?;
        let text = self.driver.actions.get(&action).cloned();
        self.shell(&text.unwrap_or_default(), self.starts, more)
            .await
            .with_context(|| format!("action `{action}`"))?;
        Ok(())
    }

    async fn shell(&self, text: &str, instance: usize, more: &[(&str, &str)]) -> Result<()> {
        let mut places = self.places(instance);
        for (name, value) in more {
            places.insert((*name).to_owned(), (*value).to_owned());
        }
        let text = self.driver.filled(text, &places);
        let mut command = Command::new("/bin/sh");
        command.arg("-ec").arg(&text).current_dir(&self.home);
        command.kill_on_drop(true).stdin(Stdio::null());
        for (name, value) in &self.driver.environment {
            command.env(name, self.driver.filled(value, &places));
        }
        let ended = tokio::time::timeout(COMMAND, command.output()).await;
        let output = ended.map_err(|_| anyhow!("not done within {COMMAND:?}: {text}"))??;
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr);
            bail!("{text:?} ended with {}: {}", output.status, told.trim());
        }
        Ok(())
    }

    /// Makes the plugin's world ready for its first start. Whoever adds devices calls it.
    ///
    /// # Errors
    /// When the driver's command fails.
    pub async fn set_up(&mut self) -> Verdict {
        if !std::mem::replace(&mut self.is_set_up, true) {
            let setup = self.driver.setup.clone();
            let set_up = self.shell(&setup, self.starts + 1, &[]).await;
            set_up.context("the driver's setup")?;
        }
        Ok(())
    }

    /// Sees to it that there are so many devices before the plugin starts.
    ///
    /// # Errors
    /// When the driver cannot make as many.
    pub async fn plug(&mut self, devices: usize) -> Verdict {
        self.set_up().await?;
        if self.driver.devices >= devices {
            return Ok(());
        }
        if !self.can(Action::AddDevice) {
            return Err(Failed::Missing(format!(
                "{devices} devices: action `add-device`, or `devices` of at least {devices}"
            )));
        }
        for device in 0..devices {
            self.act(Action::AddDevice, device).await?;
        }
        Ok(())
    }

    /// Starts an instance of the plugin, beside those that run.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(&mut self) -> Verdict {
        self.set_up().await?;
        self.starts += 1;
        // Two of them live side by side.
        self.port = free_port()?;
        let places = self.places(self.starts);
        let filled = |text: &String| self.driver.filled(text, &places);
        let words = self.wrapper.iter().cloned();
        let words: Vec<String> = words
            .chain(self.driver.command.iter().map(filled))
            .collect();
        let (program, arguments) = words.split_first().context("no command to start")?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.home);
        for (name, value) in &self.driver.environment {
            command.env(name, self.driver.filled(value, &places));
        }
        let process = PluginProcess::start(&mut command, &self.log(self.starts))?;
        self.plugins.push(process);
        Ok(())
    }
}
