#!/usr/bin/env bash
# images.sh ROOTFS OUT - the images of a cluster and of the tests of Kubernetes,
# under the names that kubeadm and the tests ask for, as one archive. They are
# made of the same sources as the published ones, but in Debian, not Alpine.
set -euo pipefail
rootfs=$1 out=$2
: "${KUBERNETES:?}" "${NODE:?}" # directories of programs

module() { (cd ../kube && go list -m -f "$1" k8s.io/kubernetes); }
sources=$(module '{{ .Dir }}')
version=$(module '{{ .Version }}')
registry=registry.k8s.io
tests=$registry/e2e-test-images

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
made=()

# image NAME DIR - of the files in DIR/root, with the Dockerfile's lines on stdin
image() {
	echo "  $1" >&2
	cat >"$2/Dockerfile"
	docker build --quiet --tag "$1" "$2" >"$2.log" 2>&1 || { cat "$2.log" >&2; exit 1; }
	made+=("$1")
}

# from_scratch NAME ENTRYPOINT PROGRAM ... - of static programs in the root
from_scratch() {
	local name=$1 entrypoint=$2 dir=$work/${2##*/}
	shift 2
	mkdir -p "$dir/root/usr/local/bin" "$dir/root/tmp"
	chmod 1777 "$dir/root/tmp"
	cp -L "$@" "$dir/root$(dirname "$entrypoint")"
	image "$name" "$dir" <<-END
		FROM scratch
		COPY root /
		ENV PATH=/usr/local/bin:/usr/bin:/bin
		ENTRYPOINT ["$entrypoint"]
	END
}

# renamed IMAGE NAME - the same under another name, with the Dockerfile's lines on stdin
renamed() {
	local dir=$work/renamed
	mkdir -p "$dir"
	image "$2" "$dir" < <(echo "FROM $1" && cat)
}

# The names that this kubeadm asks for.
asked() { "$KUBERNETES/kubeadm" config images list --kubernetes-version "$version" 2>/dev/null | grep "/$1:"; }

for name in kube-apiserver kube-controller-manager kube-scheduler etcd; do
	from_scratch "$(asked $name)" "/usr/local/bin/$name" "$KUBERNETES/$name"
done
from_scratch "$(asked coredns)" /coredns "$NODE/coredns"

pause=$(asked pause)
gcc -Os -static -s -DVERSION="${pause##*:}" -o "$work/pause" "$sources/build/pause/linux/pause.c"
mkdir "$work/pause-image"
cp "$work/pause" "$work/pause-image/"
image "$pause" "$work/pause-image" <<-'END'
	FROM scratch
	COPY pause /pause
	USER 65535:65535
	ENTRYPOINT ["/pause"]
END

dir=$work/kube-proxy
proxy=$(asked kube-proxy)
mkdir -p "$dir/root"/{tmp,run,etc,var/lib,usr/local/bin}
./pick.sh "$rootfs" "$dir/root" /usr/sbin/{ip,ip6}tables{,-legacy,-nft}{,-save,-restore} /usr/sbin/{nft,conntrack,ipset} \
	/usr/bin/{kmod,dash,sh,sleep,cat,grep} /usr/sbin/modprobe '/usr/lib/*/xtables/*.so' /etc/protocols
cp "$KUBERNETES/kube-proxy" "$dir/root/usr/local/bin/"
image "$proxy" "$dir" <<-'END'
	FROM scratch
	COPY root /
	ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	ENTRYPOINT ["/usr/local/bin/kube-proxy"]
END

# test_image NAME - the name of one of the tests' images
test_image() {
	sed -nE "s#^\tconfigs\[$1\] *= Config\{list\.[A-Za-z0-9]+, \"(.*)\", \"(.*)\"\}#\1:\2#p" \
		"$sources/test/utils/image/manifest.go" | grep .
}

dir=$work/agnhost
agnhost=$tests/$(test_image Agnhost)
mkdir -p "$dir/root"/{tmp,uploads,proc,sys,dev,etc,root,var/run}
chmod 1777 "$dir/root/tmp"
./pick.sh "$rootfs" "$dir/root" /usr/bin/{bash,dash,sh,dig,nslookup,curl,wget,nc,nc.openbsd,iperf,socat,ss,ipcs,unshare,nsenter,timeout,getent,ping,busybox} \
	/usr/sbin/ip '/usr/lib/*/libnss_files.so.2' '/usr/lib/*/libnss_dns.so.2' /etc/{passwd,group,nsswitch.conf}
for applet in $(chroot "$dir/root" /usr/bin/busybox --list); do
	[[ -e $dir/root/usr/bin/$applet || -L $dir/root/usr/bin/$applet ]] || ln -s busybox "$dir/root/usr/bin/$applet"
done
cp "$KUBERNETES/agnhost" "$NODE/coredns" "$sources"/test/images/agnhost/porter/localhost.{crt,key} "$dir/root/"
ln -s agnhost "$dir/root/agnhost-2"
image "$agnhost" "$dir" <<-'END'
	FROM scratch
	COPY root /
	ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	EXPOSE 80 8080 8081 9376 5000
	ENTRYPOINT ["/agnhost"]
	CMD ["pause"]
END

# Stand-ins for other images of the tests: they take little space beside agnhost.
renamed "$agnhost" "$tests/$(test_image BusyBox)" <<-'END'
	ENTRYPOINT []
	CMD ["sh"]
END
renamed "$agnhost" "$tests/$(test_image GlibcDnsTesting)" <<-'END'
	ENTRYPOINT []
	CMD ["/bin/sh", "-c", "sleep 86400"]
END
for name in Nginx NginxNew; do
	renamed "$agnhost" "$tests/$(test_image $name)" <<-'END'
		EXPOSE 80
		ENTRYPOINT ["/agnhost", "netexec", "--http-port=80"]
		CMD []
	END
done
renamed "$proxy" "$registry/build-image/$(test_image DistrolessIptables)" <<-'END'
	ENTRYPOINT []
	CMD ["/bin/sh"]
END
from_scratch "$tests/$(test_image RegressionIssue74839)" /regression-issue-74839 "$KUBERNETES/regression-issue-74839"

docker save "${made[@]}" -o "$out"
