//! Where providers are that other gateways know by name. Addresses and variables are those that the
//! providers' own documents give.

/// What is known of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Provider {
    /// `ollama` or `openai`.
    pub kind: &'static str,
    /// Where it is when the file does not say; none: the file must.
    pub url: Option<&'static str>,
    /// The variable that holds its key when the file does not say.
    pub key: Option<&'static str>,
}

/// Names, address, and variable of the key. All speak the OpenAI API there.
const OPENAI: &[(&[&str], Option<&str>, Option<&str>)] = &[
    (&["openai"], Some("https://api.openai.com/v1"), Some("OPENAI_API_KEY")),
    (&["anthropic"], Some("https://api.anthropic.com/v1"), Some("ANTHROPIC_API_KEY")),
    (
        &["gemini", "google"],
        Some("https://generativelanguage.googleapis.com/v1beta/openai"),
        Some("GEMINI_API_KEY"),
    ),
    (&["openrouter"], Some("https://openrouter.ai/api/v1"), Some("OPENROUTER_API_KEY")),
    (&["groq"], Some("https://api.groq.com/openai/v1"), Some("GROQ_API_KEY")),
    (&["mistral"], Some("https://api.mistral.ai/v1"), Some("MISTRAL_API_KEY")),
    (&["deepseek"], Some("https://api.deepseek.com/v1"), Some("DEEPSEEK_API_KEY")),
    (&["xai"], Some("https://api.x.ai/v1"), Some("XAI_API_KEY")),
    (&["together_ai"], Some("https://api.together.xyz/v1"), Some("TOGETHERAI_API_KEY")),
    (&["together"], Some("https://api.together.xyz/v1"), Some("TOGETHER_API_KEY")),
    (
        &["fireworks_ai"],
        Some("https://api.fireworks.ai/inference/v1"),
        Some("FIREWORKS_AI_API_KEY"),
    ),
    (&["cerebras"], Some("https://api.cerebras.ai/v1"), Some("CEREBRAS_API_KEY")),
    (&["nvidia_nim"], Some("https://integrate.api.nvidia.com/v1"), Some("NVIDIA_NIM_API_KEY")),
    (&["nvidia"], Some("https://integrate.api.nvidia.com/v1"), Some("NVIDIA_API_KEY")),
    (&["deepinfra"], Some("https://api.deepinfra.com/v1/openai"), Some("DEEPINFRA_API_KEY")),
    (&["moonshot"], Some("https://api.moonshot.ai/v1"), Some("MOONSHOT_API_KEY")),
    (&["lm_studio", "lmstudio"], Some("http://127.0.0.1:1234/v1"), None),
    (&["llamafile"], Some("http://127.0.0.1:8080/v1"), None),
    (&["vllm"], Some("http://127.0.0.1:8000/v1"), None),
    (&["hosted_vllm"], None, None),
    (&["openai_like", "custom_openai", "litellm_proxy", "litellm"], None, None),
];

/// Those that speak something else, whatever their address.
const OTHERS: &[&str] = &[
    "amazon-bedrock",
    "azure",
    "azure_ai",
    "azure_text",
    "bedrock",
    "bedrock_converse",
    "cohere",
    "cohere_chat",
    "github-copilot",
    "google-vertex",
    "huggingface",
    "openai-codex",
    "palm",
    "petals",
    "predibase",
    "replicate",
    "sagemaker",
    "sagemaker_chat",
    "text-completion-openai",
    "triton",
    "vertex_ai",
    "vertex_ai_beta",
    "watsonx",
];

/// What is known of a provider by its name.
pub(super) fn find(name: &str) -> Option<Provider> {
    if matches!(name, "ollama" | "ollama_chat") {
        let url = Some("http://127.0.0.1:11434");
        return Some(Provider { kind: "ollama", url, key: None });
    }
    let (_, url, key) = OPENAI.iter().find(|(names, ..)| names.contains(&name))?;
    Some(Provider { kind: "openai", url: *url, key: *key })
}

/// Whether it is known to speak a protocol that we do not.
pub(super) fn speaks_something_else(name: &str) -> bool {
    OTHERS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::BaseUrl;

    #[test]
    fn every_address_is_one_and_no_name_stands_twice() {
        let mut seen: Vec<&str> = Vec::new();
        for (names, url, _) in OPENAI {
            assert!(url.is_none_or(|url| BaseUrl::parse(url).is_ok()), "{names:?}");
            seen.extend(names.iter().copied());
        }
        seen.extend(OTHERS.iter().copied());
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all);
        assert_eq!(find("ollama_chat").map(|p| p.kind), Some("ollama"));
        assert_eq!(find("nobody"), None);
    }
}
