package deploy_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/trmtracking/processor/internal/config"
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

type healthcheck struct {
	Test []string
}

type composeService struct {
	Image       string
	Command     []string
	Environment map[string]string
	Ports       []string
	ReadOnly    bool   `yaml:"read_only"`
	Grace       string `yaml:"stop_grace_period"`
	Restart     string
	CapDrop     []string `yaml:"cap_drop"`
	Healthcheck healthcheck
	Build       struct{ Context, Dockerfile string }
	DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
	Container   string                                `yaml:"container_name"`
}

func TestComposeFileFitsTheServicesBudgets(t *testing.T) {
	text, err := os.ReadFile("compose.yaml")
	require.NoError(t, err)
	var file struct{ Services map[string]composeService }
	require.NoError(t, yaml.Unmarshal(text, &file))

	p := file.Services["processor"]
	known(t, p.Environment)
	cfg := load(t, p.Environment)
	require.GreaterOrEqual(t, duration(t, p.Grace), cfg.Instance.ShutdownTimeout+spare)
	require.True(t, p.ReadOnly)
	require.Equal(t, []string{"ALL"}, p.CapDrop)
	require.FileExists(t, filepath.Join(p.Build.Context, p.Build.Dockerfile))
	require.Equal(t, "unless-stopped", p.Restart, "exit codes ask for a restart")
	// What would keep --scale processor=2 from working.
	require.Empty(t, p.Container)
	require.NotContains(t, p.Environment, "INSTANCE_ID")
	require.Equal(t, []string{strconv.Itoa(cfg.Console.Port)}, p.Ports, "no fixed port of the host")
	for name, on := range p.DependsOn {
		if on.Condition == "service_healthy" {
			require.NotEmpty(t, file.Services[name].Healthcheck.Test, name)
		}
	}
	require.Equal(t, "service_completed_successfully", p.DependsOn["rights"].Condition, "the schema is there, and its rights")
	require.NotContains(t, string(text), ":-", "no default passwords")
	admin := file.Services["postgres"].Environment["POSTGRES_USER"]
	for name, s := range file.Services {
		if u := s.Environment["POSTGRES_URL"]; u != "" {
			require.NotContains(t, u, "//"+admin+":", "%s is no superuser", name)
		}
	}
	require.Equal(t, "verify", p.Environment["MIGRATE"])
	redis := strings.Join(file.Services["redis"].Command, " ")
	require.Contains(t, redis, "--appendonly yes")
	require.Contains(t, redis, "--maxmemory-policy noeviction")
	require.Contains(t, file.Services["postgres"].Image, "timescale")
}

type probe struct {
	HTTPGet          struct{ Path, Port string } `yaml:"httpGet"`
	PeriodSeconds    int                         `yaml:"periodSeconds"`
	TimeoutSeconds   int                         `yaml:"timeoutSeconds"`
	FailureThreshold int                         `yaml:"failureThreshold"`
}

type object struct {
	Kind string
	Spec struct {
		Replicas int
		Selector struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		}
		Strategy struct {
			RollingUpdate struct {
				MaxUnavailable int `yaml:"maxUnavailable"`
			} `yaml:"rollingUpdate"`
		}
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				Grace           int `yaml:"terminationGracePeriodSeconds"`
				SecurityContext struct {
					RunAsNonRoot bool `yaml:"runAsNonRoot"`
					RunAsUser    int  `yaml:"runAsUser"`
				} `yaml:"securityContext"`
				Containers []struct {
					Env []struct {
						Name, Value string
						ValueFrom   any `yaml:"valueFrom"`
					}
					Ports []struct {
						Name string
						Port int `yaml:"containerPort"`
					}
					Liveness        probe `yaml:"livenessProbe"`
					Readiness       probe `yaml:"readinessProbe"`
					SecurityContext struct {
						ReadOnly bool `yaml:"readOnlyRootFilesystem"`
						Escalate bool `yaml:"allowPrivilegeEscalation"`
					} `yaml:"securityContext"`
					Mounts []struct {
						Name string
						Path string `yaml:"mountPath"`
					} `yaml:"volumeMounts"`
				}
				Volumes []struct{ Name string }
			}
		}
		MinReplicas    int                         `yaml:"minReplicas"`
		MaxReplicas    int                         `yaml:"maxReplicas"`
		MaxUnavailable int                         `yaml:"maxUnavailable"`
		Target         struct{ Kind, Name string } `yaml:"scaleTargetRef"`
		Metrics        []struct {
			External struct {
				Metric struct{ Name string }
				Target struct {
					Average string `yaml:"averageValue"`
				}
			}
		}
	}
	Metadata struct{ Name string }
}

func objects(t *testing.T) map[string]object {
	t.Helper()
	file, err := os.Open("kubernetes/processor.yaml")
	require.NoError(t, err)
	defer file.Close()
	all := map[string]object{}
	for d := yaml.NewDecoder(file); ; {
		var o object
		err := d.Decode(&o)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		all[o.Kind] = o
	}
}

func TestKubernetesManifestsFitTheServicesBudgets(t *testing.T) {
	all := objects(t)
	require.Len(t, all, 3)
	d := all["Deployment"]
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
	known(t, environ)
	cfg := load(t, environ)
	grace := time.Duration(pod.Grace) * time.Second
	require.GreaterOrEqual(t, grace, cfg.Instance.ShutdownTimeout+spare)
	require.GreaterOrEqual(t, cfg.Instance.ShutdownTimeout, cfg.Instance.DrainTimeout+config.ReleaseBudget+config.CloseBudget)

	require.Equal(t, cfg.Console.Port, c.Ports[0].Port)
	require.Equal(t, "/healthz", c.Liveness.HTTPGet.Path, "no dependency is asked: a restart fixes no outage")
	require.Equal(t, "/readyz", c.Readiness.HTTPGet.Path)
	for _, p := range []probe{c.Liveness, c.Readiness} {
		require.Equal(t, c.Ports[0].Name, p.HTTPGet.Port)
		require.Greater(t, p.TimeoutSeconds, 2, "checks of readiness take up to 2 s")
	}
	// The watchdog gives shards up in an orderly way; a liveness probe does not.
	require.GreaterOrEqual(t, time.Duration(c.Liveness.PeriodSeconds*c.Liveness.FailureThreshold)*time.Second, cfg.Instance.StallTimeout)

	require.True(t, pod.SecurityContext.RunAsNonRoot && c.SecurityContext.ReadOnly && !c.SecurityContext.Escalate)
	writable := map[string]bool{}
	for _, m := range c.Mounts {
		writable[m.Path] = true
	}
	require.True(t, writable[filepath.Dir(cfg.Crash.Dir)], "dumps need a place on a read-only file system, and a folder in it that is not the volume's, which is open to its group")

	labels := d.Spec.Selector.MatchLabels
	require.Equal(t, labels, d.Spec.Template.Metadata.Labels)
	require.Equal(t, labels, all["PodDisruptionBudget"].Spec.Selector.MatchLabels)
	require.Equal(t, 1, all["PodDisruptionBudget"].Spec.MaxUnavailable)
	require.Zero(t, d.Spec.Strategy.RollingUpdate.MaxUnavailable)

	h := all["HorizontalPodAutoscaler"].Spec
	require.Equal(t, d.Metadata.Name, h.Target.Name)
	require.Equal(t, d.Spec.Replicas, h.MinReplicas)
	require.LessOrEqual(t, h.MaxReplicas, cfg.Coordination.Shards, "more members than shards have nothing to do")
	require.Equal(t, "processor_group_backlog_entries", h.Metrics[0].External.Metric.Name)
	target, err := strconv.Atoi(h.Metrics[0].External.Target.Average)
	require.NoError(t, err)
	require.Less(t, target, cfg.Coordination.DispatchAhead, "scaled up before dispatching pauses")
	source, err := os.ReadFile("../coordination/tasks/group_metrics.go")
	require.NoError(t, err)
	require.Contains(t, string(source), `"processor_group_backlog_entries"`, "a metric that there is")
}

func TestImageIsStaticUnprivilegedAndChecksItself(t *testing.T) {
	raw, err := os.ReadFile("Dockerfile")
	require.NoError(t, err)
	text := strings.ReplaceAll(string(raw), "\\\n", " ")
	require.NotContains(t, text, "# syntax=", "it would be fetched from a registry")
	stages := regexp.MustCompile(`(?m)^FROM `).Split(text, -1)
	require.Len(t, stages, 3, "what comes before, build, image")
	build, image := stages[1], stages[2]
	require.Contains(t, build, "scripts/build-static.sh")
	gomod, err := os.ReadFile("../go.mod")
	require.NoError(t, err)
	version := regexp.MustCompile(`(?m)^go (1\.\d+)`).FindSubmatch(gomod)
	require.Contains(t, stages[0], "GO_IMAGE=golang:"+string(version[1])+".", "the Go version of go.mod")

	require.True(t, strings.HasPrefix(image, "scratch\n"), "nothing below it that could be another's")
	user := regexp.MustCompile(`(?m)^USER (\d+):`).FindStringSubmatch(image)
	require.NotNil(t, user)
	require.NotEqual(t, "0", user[1])
	require.Equal(t, user[1], strconv.Itoa(objects(t)["Deployment"].Spec.Template.Spec.SecurityContext.RunAsUser))
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
