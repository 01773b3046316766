# @summary Keeps the container images of GitLab CI warm in local mirrors, on a Debian 12 host.
#
# Put this into a module `prewarm` as manifests/init.pp. Its files/ holds the wheel and the units of
# systemd/. The mirror is not managed here: docs/install.md tells how to make one.
#
# @example A site of runners that syncs
#   class { 'prewarm':
#     enabled => true,
#     version => '0.1.0',
#     config  => file('profile/prewarm/images.yml'),
#   }
#
# @param enabled
#   Whether this host syncs. false stops and disables the timer and ends a sync at work, and leaves
#   all else: the mirror serves what it has, the ledger stays, and true goes on where it stopped.
# @param version
#   The release. Another one is an upgrade; the wheel of its name is in files/.
# @param config
#   The text of images.yml. One that `prewarm check` refuses is not put in place.
# @param gitlab_token
#   Of a GitLab user who sees the projects; read_api is enough. undef: the file is not touched.
# @param auth_json
#   Logins for registries, as skopeo login writes them. undef: the file is not touched.
# @param pgpass
#   The password of a PostgreSQL state. undef: the file is not touched.
class prewarm (
  Boolean                       $enabled,
  Pattern[/\A\d+\.\d+[\w.]*\z/] $version,
  String[1]                     $config,
  Optional[Sensitive[String]]   $gitlab_token = undef,
  Optional[Sensitive[String]]   $auth_json    = undef,
  Optional[Sensitive[String]]   $pgpass       = undef,
) {
  $wheel = "prewarm-${version}-py3-none-any.whl"

  package { ['skopeo', 'pipx']:
    ensure => installed,
  }

  group { 'prewarm':
    ensure => present,
    system => true,
  }

  user { 'prewarm':
    ensure     => present,
    system     => true,
    gid        => 'prewarm',
    home       => '/var/lib/prewarm',
    managehome => false,
    shell      => '/usr/sbin/nologin',
  }

  file {
    default:
      owner => 'root',
      group => 'root',
      mode  => '0644',
      ;
    ['/opt/pipx', '/etc/prewarm']:
      ensure => directory,
      mode   => '0755',
      ;
    "/opt/pipx/${wheel}":
      source => "puppet:///modules/prewarm/${wheel}",
      ;
    '/var/lib/prewarm':
      ensure => directory,
      owner  => 'prewarm',
      group  => 'prewarm',
      mode   => '0700',
      ;
    '/etc/prewarm/images.yml':
      content      => $config,
      validate_cmd => '/usr/local/bin/prewarm check %',
      require      => Exec['install prewarm'],
      ;
    '/etc/systemd/system/prewarm.service':
      source => 'puppet:///modules/prewarm/prewarm.service',
      ;
    '/etc/systemd/system/prewarm-failed@.service':
      source => 'puppet:///modules/prewarm/prewarm-failed@.service',
      ;
    '/etc/systemd/system/prewarm.timer':
      source => 'puppet:///modules/prewarm/prewarm.timer',
      ;
  }

  $secrets = {
    'gitlab-token' => $gitlab_token,
    'auth.json'    => $auth_json,
    'pgpass'       => $pgpass,
  }.filter |$name, $secret| { $secret != undef }

  $secrets.each |$name, $secret| {
    file { "/etc/prewarm/${name}":
      content   => $secret,
      owner     => 'prewarm',
      group     => 'prewarm',
      mode      => '0600',
      show_diff => false,
    }
  }

  exec { 'install prewarm':
    command     => "/usr/bin/pipx install --force /opt/pipx/${wheel}",
    unless      => "/usr/local/bin/prewarm --version | /usr/bin/grep -qxF 'prewarm ${version}'",
    provider    => shell,
    environment => ['PIPX_HOME=/opt/pipx', 'PIPX_BIN_DIR=/usr/local/bin', 'HOME=/root'],
    umask       => '0022',
    timeout     => 600,
    require     => [Package['skopeo', 'pipx'], File["/opt/pipx/${wheel}"]],
  }

  service { 'prewarm.timer':
    ensure  => $enabled,
    enable  => $enabled,
    require => [
      File['/etc/prewarm/images.yml', '/var/lib/prewarm'],
      File['/etc/systemd/system/prewarm.service', '/etc/systemd/system/prewarm.timer'],
    ],
  }

  unless $enabled {
    service { 'prewarm.service':
      ensure  => stopped,
      require => Service['prewarm.timer'],
    }
  }
}
