package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/httpserver"
)

func newHealthCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Report whether the instance on this machine is ready",
		Long: `Requests /readyz on METRICS_PORT. Exits 0 if the instance is ready, 1 if it is not
or does not respond. This is the health check of the container image, which has no
shell and no other HTTP client.`,
		Example: `  processor health
  processor health --json
  METRICS_PORT=9191 processor health --timeout 1s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadConsole(os.Environ())
			if err != nil {
				return err
			}
			if cfg.Port == 0 {
				return fault.Exit(fault.Config, fmt.Errorf("METRICS_PORT=0 selects any free port; set the one the instance uses"))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			r, err := askReadiness(ctx, "http://"+localAddress(cfg)+"/readyz")
			if err != nil {
				return err
			}
			out := outputOf(cmd)
			err = out.Result(r, func() error {
				if r.Ready {
					return out.Line("%s", out.Paint(cli.Green, "ready"))
				}
				if err := out.Line("%s: %s", out.Paint(cli.Red, "not ready"), strings.Join(r.NotReady, ", ")); err != nil {
					return err
				}
				for _, name := range r.NotReady {
					if err := out.Line("  %s: %s", name, r.Checks[name]); err != nil {
						return err
					}
				}
				return nil
			})
			if err == nil && !r.Ready {
				return fault.Exit(fault.Finding, nil)
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 4*time.Second, "maximum wait for the answer")
	return cmd
}

// localAddress returns how this machine reaches the endpoint: one that listens on
// all interfaces is reached on loopback.
func localAddress(cfg config.Console) string {
	host := cfg.Host
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, strconv.Itoa(cfg.Port))
}

func askReadiness(ctx context.Context, url string) (httpserver.Readiness, error) {
	var r httpserver.Readiness
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return r, fmt.Errorf("ask %s: %w", url, err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy: same machine
	res, err := client.Do(req)
	if err != nil {
		return r, fmt.Errorf("no answer at %s: %s; check that it runs, with the same METRICS_PORT", req.URL.Host, fault.Causes(err))
	}
	defer res.Body.Close() //nolint:errcheck // read to its end below
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusServiceUnavailable {
		return r, fmt.Errorf("ask %s: %s; check whether another program uses this port", url, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&r); err != nil {
		return r, fmt.Errorf("ask %s: unexpected response; check whether another program uses this port: %w", url, err)
	}
	return r, nil
}
