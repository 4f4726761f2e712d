package deploy_test

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
)

// spare is how much longer than SHUTDOWN_TIMEOUT an orchestrator waits.
const spare = 5 * time.Second

// load is the configuration that an environment makes.
func load(t *testing.T, environ map[string]string) config.Config {
	t.Helper()
	list := []string{"REDIS_URL=redis://r", "POSTGRES_URL=postgres://p/d"}
	for name, value := range environ {
		if name != "REDIS_URL" && name != "POSTGRES_URL" && !strings.HasSuffix(name, "_FILE") {
			list = append(list, name+"="+value)
		}
	}
	require.Empty(t, config.LikelyTypos(list), "a variable that does not exist")
	cfg, err := config.Load(list)
	require.NoError(t, err)
	return cfg
}

func duration(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(text)
	require.NoError(t, err)
	return d
}

func known(t *testing.T, environ map[string]string) {
	t.Helper()
	names := map[string]bool{}
	for _, v := range config.Variables() {
		names[v.Name] = true
		if v.Secret {
			names[v.Name+"_FILE"] = true
		}
	}
	for name := range environ {
		require.True(t, names[name], "%s is no variable of the service", name)
	}
}

// compose is the file as Compose reads it: the schema of its specification is checked,
// and a variable without a default has to be given.
func compose(t *testing.T) *types.Project {
	t.Helper()
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  absolute(t, "."),
		ConfigFiles: []types.ConfigFile{{Filename: "compose.yaml"}},
		Environment: types.Mapping{
			"POSTGRES_PASSWORD": "a", "OWNER_PASSWORD": "b", "PROCESSOR_PASSWORD": "c", "GRAFANA_PASSWORD": "d",
		},
	}, loader.WithProfiles([]string{"traffic"}))
	require.NoError(t, err)
	return project
}

func TestComposeFileFitsTheServicesBudgets(t *testing.T) {
	project := compose(t)
	p := project.Services["processor"]
	environ := map[string]string{}
	for name, value := range p.Environment {
		environ[name] = *value
	}
	known(t, environ)
	cfg := load(t, environ)
	require.GreaterOrEqual(t, time.Duration(*p.StopGracePeriod), cfg.Instance.ShutdownTimeout+spare)
	require.True(t, p.ReadOnly)
	require.Equal(t, []string{"ALL"}, p.CapDrop)
	require.FileExists(t, filepath.Join(p.Build.Context, p.Build.Dockerfile))
	require.Equal(t, "unless-stopped", p.Restart, "exit codes ask for a restart")
	// What would keep two of them from working.
	require.Equal(t, 2, p.GetScale())
	require.Empty(t, p.ContainerName)
	require.NotContains(t, environ, "INSTANCE_ID")
	require.Len(t, p.Ports, 1)
	require.Equal(t, uint32(cfg.Console.Port), p.Ports[0].Target)
	require.Empty(t, p.Ports[0].Published, "no fixed port of the host")
	for _, s := range project.Services {
		for name, on := range s.DependsOn {
			if on.Condition == types.ServiceConditionHealthy && name != "processor" { // whose image has it
				require.NotEmpty(t, project.Services[name].HealthCheck.Test, name)
			}
		}
	}
	require.Equal(t, types.ServiceConditionCompletedSuccessfully, p.DependsOn["rights"].Condition, "the schema is there, and its rights")
	text, err := os.ReadFile("compose.yaml")
	require.NoError(t, err)
	require.NotContains(t, string(text), ":-", "no default passwords")
	admin := *project.Services["postgres"].Environment["POSTGRES_USER"]
	for name, s := range project.Services {
		if u := s.Environment["POSTGRES_URL"]; u != nil {
			require.NotContains(t, *u, "//"+admin+":", "%s is no superuser", name)
		}
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeBind {
				_, err := os.Stat(v.Source)
				require.NoError(t, err, name)
			}
		}
	}
	require.Equal(t, "verify", environ["MIGRATE"])
	redis := strings.Join(project.Services["redis"].Command, " ")
	require.Contains(t, redis, "--appendonly yes")
	require.Contains(t, redis, "--maxmemory-policy noeviction")
	require.Contains(t, project.Services["postgres"].Image, "timescale")
	require.Equal(t, []string{"traffic"}, project.Services["traffic"].Profiles, "nobody sends to a system by accident")
	require.Contains(t, dockerfile(t), "FROM scratch AS "+project.Services["traffic"].Build.Target+"\n")
}

// Who waits for Postgres connects over the network, where the server of the first start,
// which runs the scripts and ends, does not listen.
func TestPostgresIsHealthyOnceItListens(t *testing.T) {
	check := regexp.MustCompile(`pg_isready\b.* -h 127\.0\.0\.1\b`)
	require.Regexp(t, check, strings.Join(compose(t).Services["postgres"].HealthCheck.Test, " "))
	text, err := os.ReadFile("../.github/workflows/ci.yml")
	require.NoError(t, err)
	for _, line := range strings.Split(string(text), "\n") {
		if strings.Contains(line, "pg_isready") {
			require.Regexp(t, check, line)
		}
	}
}

// The traffic of the compose file is a command line that there is.
func TestTheTrafficOfTheComposeFileIsUnderstood(t *testing.T) {
	const program = "../bin/loadtest"
	if _, err := os.Stat(program); err != nil {
		t.Skip("SKIPPED: bin/loadtest is not built (make build), so the traffic's command line was not tried")
	}
	args := slices.Clone([]string(compose(t).Services["traffic"].Command))
	for i, a := range args {
		if a == "--redis-url" {
			args[i+1] = "redis://127.0.0.1:1"
		}
		if a == "--log" {
			args[i+1] = filepath.Join(t.TempDir(), "sent.log")
		}
	}
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "127.0.0.1:1", "Redis is not there; all else is understood")
}

// decode reads a manifest into the type of the API that has it; an unknown field is an error.
func decode[T any](t *testing.T, document []byte) T {
	t.Helper()
	var into T
	require.NoError(t, yaml.UnmarshalStrict(document, &into), "%s", document)
	return into
}

// manifests are the documents of a file by their kind.
func manifests(t *testing.T, file string) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	all := map[string][]byte{}
	for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
		var kind struct{ Kind string }
		require.NoError(t, yaml.Unmarshal(document, &kind))
		require.NotContains(t, all, kind.Kind)
		all[kind.Kind] = document
	}
	return all
}

func deployment(t *testing.T) apps.Deployment {
	t.Helper()
	return decode[apps.Deployment](t, manifests(t, "kubernetes/processor.yaml")["Deployment"])
}

func TestKubernetesManifestsFitTheServicesBudgets(t *testing.T) {
	all := manifests(t, "kubernetes/processor.yaml")
	require.ElementsMatch(t, []string{"ServiceAccount", "Deployment", "PodDisruptionBudget", "NetworkPolicy"}, slices.Collect(maps.Keys(all)))
	d := deployment(t)
	pod := d.Spec.Template.Spec
	require.Len(t, pod.Containers, 1)
	c := pod.Containers[0]

	environ := map[string]string{}
	named := map[string]bool{}
	for _, e := range c.Env {
		named[e.Name] = true
		if e.ValueFrom == nil {
			environ[e.Name] = e.Value
		}
	}
	require.True(t, named["INSTANCE_ID"], "the pod's name, which is unique")
	require.True(t, named["DEPLOY_ID"], "the template's hash, the same for all pods of a rollout")
	known(t, environ)
	cfg := load(t, environ)
	grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second
	require.GreaterOrEqual(t, grace, cfg.Instance.ShutdownTimeout+spare)
	require.GreaterOrEqual(t, cfg.Instance.ShutdownTimeout, cfg.Instance.DrainTimeout+config.ReleaseBudget+config.CloseBudget)

	require.Equal(t, cfg.Console.Port, int(c.Ports[0].ContainerPort))
	require.Equal(t, "/healthz", c.LivenessProbe.HTTPGet.Path, "no dependency is asked: a restart fixes no outage")
	require.Equal(t, "/healthz", c.StartupProbe.HTTPGet.Path, "START_TIMEOUT waits for the servers, not the probe")
	require.Equal(t, "/readyz", c.ReadinessProbe.HTTPGet.Path)
	for _, p := range []*core.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		require.Equal(t, c.Ports[0].Name, p.HTTPGet.Port.StrVal)
		require.Greater(t, p.TimeoutSeconds, int32(2), "checks of readiness take up to 2 s")
	}
	// The watchdog gives shards up in an orderly way; a liveness probe does not.
	require.GreaterOrEqual(t, time.Duration(c.LivenessProbe.PeriodSeconds*c.LivenessProbe.FailureThreshold)*time.Second, cfg.Instance.StallTimeout)

	require.True(t, *pod.SecurityContext.RunAsNonRoot && *c.SecurityContext.ReadOnlyRootFilesystem && !*c.SecurityContext.AllowPrivilegeEscalation)
	account := decode[core.ServiceAccount](t, all["ServiceAccount"])
	require.Equal(t, account.Name, pod.ServiceAccountName)
	require.False(t, *account.AutomountServiceAccountToken || *pod.AutomountServiceAccountToken, "it asks nothing of the API server")
	writable := map[string]bool{}
	for _, m := range c.VolumeMounts {
		writable[m.MountPath] = true
	}
	require.True(t, writable[filepath.Dir(cfg.Crash.Dir)], "dumps need a place on a read-only file system, and a folder in it that is not the volume's, which is open to its group")

	labels := d.Spec.Selector.MatchLabels
	require.Equal(t, labels, d.Spec.Template.Labels)
	budget := decode[policy.PodDisruptionBudget](t, all["PodDisruptionBudget"])
	require.Equal(t, labels, budget.Spec.Selector.MatchLabels)
	require.Equal(t, 1, budget.Spec.MaxUnavailable.IntValue())
	require.Zero(t, d.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue())
	for _, spread := range pod.TopologySpreadConstraints {
		require.Equal(t, labels, spread.LabelSelector.MatchLabels)
	}

	network := decode[networking.NetworkPolicy](t, all["NetworkPolicy"])
	require.Equal(t, labels, network.Spec.PodSelector.MatchLabels)
	require.Equal(t, c.Ports[0].Name, network.Spec.Ingress[0].Ports[0].Port.StrVal)
	var out []int
	for _, rule := range network.Spec.Egress {
		for _, port := range rule.Ports {
			out = append(out, port.Port.IntValue())
		}
	}
	require.ElementsMatch(t, []int{53, 53, 6379, 26379, 5432}, out)
}

// scaledObject is what we use of KEDA's type.
type scaledObject struct {
	APIVersion, Kind string
	Metadata         struct{ Name string }
	Spec             struct {
		ScaleTargetRef                                    struct{ Name string }
		MinReplicaCount, MaxReplicaCount, PollingInterval int
		Fallback                                          struct{ FailureThreshold, Replicas int }
		Advanced                                          struct {
			HorizontalPodAutoscalerConfig struct {
				Behavior autoscaling.HorizontalPodAutoscalerBehavior
			}
		}
		Triggers []struct {
			Type, MetricType string
			Metadata         struct{ ServerAddress, Query, Threshold string }
		}
	}
}

// Both scale by the age of the backlog, alike.
func TestAutoscalersFollowTheAgeOfTheBacklog(t *testing.T) {
	const metric = "processor_group_backlog_age_seconds"
	source, err := os.ReadFile("../coordination/tasks/group_metrics.go")
	require.NoError(t, err)
	require.Contains(t, string(source), `"`+metric+`"`, "a metric that there is")
	d, cfg := deployment(t), load(t, nil)

	h := decode[autoscaling.HorizontalPodAutoscaler](t, manifests(t, "kubernetes/optional/hpa.yaml")["HorizontalPodAutoscaler"]).Spec
	require.Equal(t, d.Name, h.ScaleTargetRef.Name)
	require.Equal(t, *d.Spec.Replicas, *h.MinReplicas)
	require.LessOrEqual(t, int(h.MaxReplicas), cfg.Coordination.Shards, "more members than shards have nothing to do")
	require.Equal(t, metric, h.Metrics[0].External.Metric.Name)
	target := h.Metrics[0].External.Target
	require.Equal(t, autoscaling.ValueMetricType, target.Type, "an age is not divided by the pods")
	takeover := cfg.Coordination.MemberTTL + 2*time.Second
	require.Greater(t, time.Duration(target.Value.Value())*time.Second, takeover, "a take-over is no reason to scale")

	k := decode[scaledObject](t, manifests(t, "kubernetes/optional/keda.yaml")["ScaledObject"]).Spec
	require.Equal(t, d.Name, k.ScaleTargetRef.Name)
	require.Equal(t, []int{int(*h.MinReplicas), int(h.MaxReplicas)}, []int{k.MinReplicaCount, k.MaxReplicaCount})
	require.Equal(t, *h.Behavior, k.Advanced.HorizontalPodAutoscalerConfig.Behavior)
	require.Equal(t, "max("+metric+")", k.Triggers[0].Metadata.Query)
	require.Equal(t, target.Value.String(), k.Triggers[0].Metadata.Threshold)
	require.Equal(t, string(target.Type), k.Triggers[0].MetricType)

	monitor := decode[struct {
		APIVersion, Kind string
		Metadata         struct {
			Name   string
			Labels map[string]string
		}
		Spec struct {
			Selector            struct{ MatchLabels map[string]string }
			PodMetricsEndpoints []struct{ Port, Path, Interval string }
		}
	}](t, manifests(t, "kubernetes/optional/podmonitor.yaml")["PodMonitor"])
	require.Equal(t, d.Spec.Selector.MatchLabels, monitor.Spec.Selector.MatchLabels)
	require.Equal(t, d.Spec.Template.Spec.Containers[0].Ports[0].Name, monitor.Spec.PodMetricsEndpoints[0].Port)
}

func TestTheSystemdUnitFitsTheServicesBudgets(t *testing.T) {
	text, err := os.ReadFile("systemd/processor.service")
	require.NoError(t, err)
	environ := map[string]string{}
	for _, line := range regexp.MustCompile(`(?m)^Environment=(.*)$`).FindAllSubmatch(text, -1) {
		for _, pair := range strings.Fields(string(line[1])) {
			name, value, _ := strings.Cut(pair, "=")
			environ[name] = value
		}
	}
	known(t, environ)
	for name, value := range environ {
		if strings.HasSuffix(name, "_FILE") {
			require.NotContains(t, value, "%", "%s: systemd's copy of a file is as old as the process, and a password is rotated in the file", name)
			require.Contains(t, string(text), " "+filepath.Base(value)+" ", "the head of the unit says who may read it")
		}
	}
	cfg := load(t, environ)
	setting := func(name string) string {
		m := regexp.MustCompile(`(?m)^` + name + `=(.*)$`).FindSubmatch(text)
		require.NotNil(t, m, name)
		return string(m[1])
	}
	require.GreaterOrEqual(t, duration(t, setting("TimeoutStopSec")), cfg.Instance.ShutdownTimeout+spare)
	require.Equal(t, strconv.Itoa(fault.Config)+" "+strconv.Itoa(fault.Schema), setting("RestartPreventExitStatus"), "what a restart does not repair")
	page, err := os.ReadFile("../docs/runbook/database-copy.md")
	require.NoError(t, err)
	require.Contains(t, string(page), "The systemd unit does not after exit code "+strconv.Itoa(fault.Config)+": `systemctl start processor`", "a refusal that a restart may repair")
	group := setting("SupplementaryGroups")
	require.Contains(t, string(text), "groupadd --system "+group+"\n", "a group that is missing keeps the service from starting")
	require.Contains(t, string(text), "install -d -o root -g "+group+" -m 750 "+filepath.Dir(environ["REDIS_URL_FILE"])+"\n", "a folder that root alone may enter does, too")

	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("SKIPPED: there is no systemd-analyze, so the unit was not verified")
	}
	unit := filepath.Join(t.TempDir(), "processor.service")
	there := strings.Replace(string(text), "/usr/local/bin/processor", "/bin/true", 1)
	require.NotEqual(t, string(text), there)
	require.NoError(t, os.WriteFile(unit, []byte(there), 0o600))
	require.Empty(t, command(t, ".", analyze, "verify", "--recursive-errors=no", unit))
	command(t, ".", analyze, "security", "--offline=true", "--threshold=20", unit)
}

// Prometheus of the compose file reads its configuration, and asks the port that there is.
func TestPrometheusOfTheComposeFileReadsItsConfiguration(t *testing.T) {
	text, err := os.ReadFile("monitoring/prometheus.yml")
	require.NoError(t, err)
	require.Contains(t, string(text), "port: "+strconv.Itoa(load(t, nil).Console.Port))
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("SKIPPED: promtool is not installed (Debian: prometheus), so prometheus.yml was not checked")
	}
	command(t, ".", promtool, "check", "config", "monitoring/prometheus.yml")
}

func dockerfile(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("Dockerfile")
	require.NoError(t, err)
	return strings.ReplaceAll(string(raw), "\\\n", " ")
}

func TestImageIsStaticUnprivilegedAndChecksItself(t *testing.T) {
	text := dockerfile(t)
	require.NotContains(t, text, "# syntax=", "it would be fetched from a registry")
	stages := regexp.MustCompile(`(?m)^FROM `).Split(text, -1)
	require.Len(t, stages, 5, "what comes before, build, two of the traffic, image")
	build, image := stages[1], stages[4]
	require.Contains(t, build, "scripts/build-static.sh")
	gomod, err := os.ReadFile("../go.mod")
	require.NoError(t, err)
	version := regexp.MustCompile(`(?m)^go (1\.\d+)`).FindSubmatch(gomod)
	require.Contains(t, stages[0], "GO_IMAGE=golang:"+string(version[1])+".", "the Go version of go.mod")

	require.True(t, strings.HasPrefix(image, "scratch\n"), "nothing below it that could be another's")
	user := regexp.MustCompile(`(?m)^USER (\d+):`).FindStringSubmatch(image)
	require.NotNil(t, user)
	require.NotEqual(t, "0", user[1])
	require.Equal(t, user[1], strconv.FormatInt(*deployment(t).Spec.Template.Spec.SecurityContext.RunAsUser, 10))
	require.Contains(t, image, `CMD ["/processor", "health"]`)
	require.Contains(t, image, `ENTRYPOINT ["/processor"]`)
	require.NotContains(t, image, "RUN ", "there is no shell")
	period := regexp.MustCompile(`--start-period=(\S+)`).FindStringSubmatch(image)
	require.NotNil(t, period)
	cfg := load(t, nil)
	require.GreaterOrEqual(t, duration(t, period[1]), cfg.Instance.StartTimeout, "waiting for a server at start is not ill")
	environ := map[string]string{}
	for _, pair := range regexp.MustCompile(`(\w+)=(\S+)`).FindAllStringSubmatch(regexp.MustCompile(`(?m)^ENV (.*)$`).FindStringSubmatch(image)[1], -1) {
		environ[pair[1]] = pair[2]
	}
	known(t, environ)
	cfg = load(t, environ)
	require.Contains(t, image, `VOLUME ["`+filepath.Dir(cfg.Crash.Dir)+`"]`)
	require.Contains(t, image, "EXPOSE "+strconv.Itoa(cfg.Console.Port))
}

// kubectl cp runs tar in the container, and there is none in the image.
func TestDumpsAreCopiedFromAContainerThatHasTar(t *testing.T) {
	pages, err := filepath.Glob("../docs/runbook/*.md")
	require.NoError(t, err)
	copies := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, cp := range regexp.MustCompile(`(?m)^kubectl cp -c (\S+) POD:(\S+) .*$`).FindAllSubmatch(text, -1) {
			copies++
			debug := regexp.MustCompile(`(?m)^kubectl debug POD --image=busybox --container=` + regexp.QuoteMeta(string(cp[1])) + ` .*--custom=/dev/stdin .*<<< '(.*)'$`).FindSubmatch(text)
			require.NotNil(t, debug, "%s: %s: it is no container of the pod's own", page, cp[0])
			require.Contains(t, string(text), "\n"+strings.TrimPrefix(string(cp[1]), "$")+"=dumps-$(date +%s)", "such a container stays, and keeps its name, as long as the pod")
			mounts := decode[core.Container](t, debug[1]).VolumeMounts
			require.Equal(t, string(cp[2]), mounts[0].MountPath)
			require.Subset(t, deployment(t).Spec.Template.Spec.Containers[0].VolumeMounts, mounts)
		}
	}
	require.Equal(t, 1, copies)
}

func TestWhatScriptsCallIsGranted(t *testing.T) {
	granted, err := os.ReadFile("security/redis.sh")
	require.NoError(t, err)
	called := regexp.MustCompile(`redis\.p?call\('([a-z]+)'`)
	for _, pattern := range []string{"../internal/stream/*.lua", "../coordination/*.lua"} {
		scripts, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.NotEmpty(t, scripts)
		for _, name := range scripts {
			script, err := os.ReadFile(name)
			require.NoError(t, err)
			for _, call := range called.FindAllSubmatch(script, -1) {
				require.Regexp(t, `\+`+string(call[1])+`[\s|)"]`, string(granted), "%s calls %s, which security/redis.sh grants nobody", name, call[1])
			}
		}
	}
}
