use super::*;

const HEAD: &str = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";

/// What each profile of a configuration does, a line each; or the error.
fn check(body: &str, expected: &str) {
    let said = match Configuration::parse(&format!("{HEAD}{body}"), Gates::default()) {
        Err(error) => error.to_string(),
        Ok(configuration) => {
            let lines = configuration.profiles.iter().map(|profile| {
                let scores = profile.plugins.iter().filter(|c| c.weight > 0);
                let scores: Vec<String> =
                    scores.map(|c| format!("{}={}", c.plugin.name(), c.weight)).collect();
                let filters = profile.plugins.iter().filter(|c| c.filters).count();
                format!("{}: {filters} filters, {}", profile.scheduler_name, scores.join(" "))
            });
            lines.collect::<Vec<_>>().join("\n")
        }
    };
    assert_eq!(said, expected);
}

const ALL: &str = "TaintToleration=3 NodeAffinity=2 NodeResourcesFit=1 PodTopologySpread=2 InterPodAffinity=2 \
                   DynamicResources=2 NodeResourcesBalancedAllocation=1 ImageLocality=1";

#[test]
fn an_empty_file_is_the_default_profile() {
    check("", &format!("default-scheduler: 14 filters, {ALL}"));
    let default = Profile::default();
    assert_eq!(default.plugins.iter().filter(|c| c.weight > 0).count(), 8);
}

#[test]
fn plugins_are_switched_and_weighted_by_point() {
    check(
        "profiles: [{schedulerName: a, plugins: {score: {disabled: [{name: '*'}],
          enabled: [{name: ImageLocality, weight: 7}]}, filter: {disabled: [{name: NodePorts}]}}}]",
        "a: 13 filters, ImageLocality=7",
    );
    check(
        "profiles: [{schedulerName: a, plugins: {multiPoint: {disabled: [{name: ImageLocality}],
          enabled: [{name: NodeAffinity, weight: 9}]}}}, {schedulerName: b}]",
        &format!(
            "a: 14 filters, NodeAffinity=9 TaintToleration=3 NodeResourcesFit=1 PodTopologySpread=2 \
             InterPodAffinity=2 DynamicResources=2 NodeResourcesBalancedAllocation=1\nb: 14 filters, {ALL}"
        ),
    );
}

#[test]
fn what_is_wrong_is_said() {
    check("profiles: [{}, {schedulerName: b}]", "profiles[0].schedulerName: Required value");
    check(
        "percentageOfNodesToScore: 101\npodMaxBackoffSeconds: 0",
        "[percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100], podMaxBackoffSeconds: \
         Invalid value: 0: must be greater than or equal to PodInitialBackoffSeconds]",
    );
    check(
        "profiles: [{plugins: {filter: {enabled: [{name: Nonsense}]}}}]",
        "profiles[0]: plugin \"Nonsense\" does not exist",
    );
    check(
        "profiles: [{pluginConfig: [{name: InterPodAffinity, args: {hardPodAffinityWeight: 101}}]}]",
        "profiles[0].pluginConfig[0]: hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]",
    );
    check(
        "profiles: [{plugins: {queueSort: {disabled: [{name: '*'}]}}}]",
        "profiles[0]: no queue sort plugin is enabled",
    );
    let error = Configuration::parse("apiVersion: v1\nkind: Pod", Gates::default()).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "no kind \"Pod\" is registered for version \"v1\"");
    assert!(
        Configuration::parse(&format!("{HEAD}profile: 1"), Gates::default()).is_err(),
        "unknown fields are refused"
    );
}

#[test]
fn extenders_are_read_and_checked() {
    let parse =
        |extenders: &str| Configuration::parse(&format!("{HEAD}extenders: {extenders}"), Gates::default());
    let good = parse(
        "[{urlPrefix: 'http://127.0.0.1:1/x', filterVerb: filter, prioritizeVerb: rank, weight: 2, httpTimeout: 1m30s,
           managedResources: [{name: x.io/gpu, ignoredByScheduler: true}]}]",
    )
    .unwrap();
    assert_eq!(good.extenders.len(), 1);
    check(
        "extenders: [{urlPrefix: 'http://a', prioritizeVerb: x}]",
        "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it",
    );
    check(
        "extenders: [{urlPrefix: 'http://a', bindVerb: b}, {urlPrefix: 'http://b', bindVerb: b}]",
        "extenders: Invalid value: \"found 2 extenders implementing bind\": only one extender can implement bind",
    );
    check(
        "extenders: [{urlPrefix: 'ftp://a'}]",
        "extenders[0]: server \"ftp://a\" is neither https:// nor http://",
    );
}
